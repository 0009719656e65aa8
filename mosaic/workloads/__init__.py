"""Makes workloads from files, tables and logs, and recruits experts with the router."""

from mosaic.workloads.loaders import file_workload
from mosaic.workloads.request_log import load_request_log
from mosaic.workloads.routing import Router
from mosaic.workloads.slot_table import slot_table_workload

__all__ = ["Router", "file_workload", "load_request_log", "slot_table_workload"]
