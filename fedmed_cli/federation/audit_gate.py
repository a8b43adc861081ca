"""What a plan asks of a contribution's audit before it leaves the hospital."""

from __future__ import annotations

from pathlib import Path

from fedmed_cli.adapters.folder import AdapterFolder, ContributionFolder
from fedmed_cli.errors import TrustError
from fedmed_cli.records.audit import Audit
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace


def audit_path(workspace: Workspace, site: str) -> Path:
    return workspace.reports / f"audit-{site}.json"


def check_audit(workspace: Workspace, plan: Plan, folder: AdapterFolder) -> None:
    """TrustError where the plan limits what an audit may find, and this contribution has no audit that keeps to it."""
    most = plan.privacy.max_audit_auc
    if most is None or not isinstance(folder, ContributionFolder):
        return
    site = folder.record.site
    path = audit_path(workspace, site)
    record = Audit.read(path) if path.exists() else None
    if record is None or record.adapter != folder.record.adapter:
        raise TrustError(
            f"{folder.path}: the plan asks for an audit of each contribution, and {workspace.relative(path)} "
            f"{'is not there' if record is None else 'is of another adapter'}",
            hint=f"fedmed audit --site {site}",
        )
    found = record.membership.auc.mean
    if found > most:
        raise TrustError(
            f"{folder.path}: the audit found an AUC of {found:.3f}, above the plan's {most:g}: the adapter tells too "
            "much about single examples",
            hint="train fewer steps, or with --dp-epsilon",
        )
