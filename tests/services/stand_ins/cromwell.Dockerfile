ARG BASE
FROM ${BASE}
COPY cromwell.py /app/
COPY tests /app/tests
USER 0:0
ENTRYPOINT ["python", "/app/cromwell.py"]
