"""One report per run: frozen dataclasses, JSON in and out, and Markdown made from them."""

from quantkit.report.markdown import report_rows, save_report, to_markdown
from quantkit.report.records import SCHEMA, CandidateReport, Report
from quantkit.report.scoring import candidate_report

__all__ = [
    "SCHEMA",
    "CandidateReport",
    "Report",
    "candidate_report",
    "report_rows",
    "save_report",
    "to_markdown",
]
