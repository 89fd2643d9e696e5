"""Write runs to MLflow and to their folders, and read them back."""

import logging
import os

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a server that is away is noticed within a minute
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a lost server is reported once, by raysim
