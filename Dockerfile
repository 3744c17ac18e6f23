# normfold on a CPU: docker build -t normfold . && docker run --rm -v "$PWD:/work" normfold verify model.onnx
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY normfold normfold
RUN python -m venv /opt/normfold \
    && /opt/normfold/bin/pip install --no-cache-dir -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu \
    && /opt/normfold/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.12-slim
COPY --from=build /opt/normfold /opt/normfold
# Checkpoints are strangers' files: nothing here needs to be root to read them.
RUN useradd --create-home normfold
USER normfold
ENV ORT_DISABLE_TELEMETRY=1
WORKDIR /work
ENTRYPOINT ["/opt/normfold/bin/normfold"]
CMD ["--help"]
