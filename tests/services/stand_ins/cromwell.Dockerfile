ARG BASE
FROM ${BASE}
COPY cromwell.py /app/
COPY tests /app/tests
USER 0:0
# Python, as a container's first process, ends at this one.
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "/app/cromwell.py"]
