"""Records of requests, as Parquet files in storage: audit, traffic for monitoring, and feedback.

Gateways write lines to a spool on their machine's disk (:mod:`cluster.records.spool`); a short-lived process
ships them (:mod:`cluster.records.ship`) to ``<team>/records/<table>/date=<day>/``. Reports, joins and erasure
read them from there. Importing this package loads neither pyarrow nor boto3.
"""

from cluster.records.layout import UNKNOWN_TEAM, record_files
from cluster.records.schema import TABLES, TableName, line, subject_hash
from cluster.records.spool import Spool

__all__ = ["TABLES", "UNKNOWN_TEAM", "Spool", "TableName", "line", "record_files", "subject_hash"]
