"""The S3 store. Only this package knows botocore."""

from tusd_py.stores.s3.store import S3Store

__all__ = ["S3Store"]
