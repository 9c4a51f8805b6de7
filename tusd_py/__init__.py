"""A resumable upload server: tus 1.0.0 in, durable staging and PostgreSQL between, S3 out."""

__version__ = "0.1.0"
