ARG BASE
FROM ${BASE}
WORKDIR /opt/azurite
COPY node_modules node_modules
RUN ln -s /opt/azurite/node_modules/azurite/dist/src/blob/main.js /usr/local/bin/azurite-blob \
 && chmod +x /opt/azurite/node_modules/azurite/dist/src/blob/main.js
VOLUME /data
CMD ["azurite-blob", "--blobHost", "0.0.0.0", "--location", "/data"]
