"""fedmed: federated LoRA fine-tuning of medical language models by exchanging files.

    import fedmed_cli as fedmed

    place = fedmed.Workspace(Path("pilot"))
    fedmed.split(place, fedmed.Source(["corpus"]), fedmed.SplitOptions(names=("A", "B"), method="iid"))
    base = fedmed.BaseModel()
    for site in place.read_plan().sites.names:
        fedmed.train_site(place, site, base=base)
    fedmed.aggregate(place, base=base)
    print(fedmed.compare(place, base=base).record.scores["global"])

Everything in `__all__` is loaded when it is used first; torch only by a step that runs a model. examples/api.py shows
more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedmed_cli.aggregation.state import AggregationSettings as AggregationSettings
    from fedmed_cli.data.sources import Source as Source
    from fedmed_cli.data.split_options import IndexOptions as IndexOptions
    from fedmed_cli.data.split_options import SplitOptions as SplitOptions
    from fedmed_cli.errors import FedmedError as FedmedError
    from fedmed_cli.events import Events as Events
    from fedmed_cli.federation.plan import PlanOptions as PlanOptions
    from fedmed_cli.federation.steps import CompareOptions as CompareOptions
    from fedmed_cli.federation.steps import aggregate as aggregate
    from fedmed_cli.federation.steps import compare as compare
    from fedmed_cli.federation.steps import personalise as personalise
    from fedmed_cli.federation.steps import read_adapter as read_adapter
    from fedmed_cli.federation.steps import split as split
    from fedmed_cli.federation.steps import train_site as train_site
    from fedmed_cli.models.base_model import BaseModel as BaseModel
    from fedmed_cli.records.plan import Plan as Plan
    from fedmed_cli.reporting.write import report as report
    from fedmed_cli.training.options import SiteSettings as SiteSettings
    from fedmed_cli.workspace import Workspace as Workspace

# Where each public name is defined.
_PUBLIC = {
    "AggregationSettings": "aggregation.state",
    "BaseModel": "models.base_model",
    "SiteSettings": "training.options",
    "CompareOptions": "federation.steps",
    "Events": "events",
    "FedmedError": "errors",
    "IndexOptions": "data.split_options",
    "Plan": "records.plan",
    "PlanOptions": "federation.plan",
    "Source": "data.sources",
    "SplitOptions": "data.split_options",
    "Workspace": "workspace",
    "aggregate": "federation.steps",
    "compare": "federation.steps",
    "personalise": "federation.steps",
    "read_adapter": "federation.steps",
    "report": "reporting.write",
    "split": "federation.steps",
    "train_site": "federation.steps",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
