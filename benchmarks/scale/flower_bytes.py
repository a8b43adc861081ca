"""Bytes that a hospital and the coordinator send in a round over Flower, beside those of Flower's own example.

    python benchmarks/scale/flower_bytes.py

It needs an environment with `fedmed[flower]`. Flower's example for language models, flowertune-llm, sends the arrays of
`get_peft_model_state_dict` as an ArrayRecord, with metrics on the way up and settings on the way down; fedmed sends a
signed bundle. Both messages are made of one adapter's numbers, float32 as PEFT trains them, and serialised by Flower's
own classes; Flower moves each object of a message by a request of its own, whose headers are not counted.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import safetensors.torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

sys.path.insert(0, str(Path(__file__).parents[1]))
from contributions import write_contribution
from startup import MISTRAL

import fedmed_cli as fedmed
from fedmed_cli.adapters.bundle import pack
from fedmed_cli.adapters.folder import AGGREGATE_NAME, CONTRIBUTION_NAME
from fedmed_cli.federation.flower.messages import make_content
from fedmed_cli.models.bundled_base import BASE
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.plan import Base, Plan, Prompt, Sites, Training

SIGNATURE = b"0" * 300  # as long as an SSH signature by an Ed25519 key
QV, ALL = ("q_proj", "v_proj"), tuple(name.rpartition(".")[2] for name in BASE.linear)
SHAPES = (
    ("SmolLM2-135M", BASE, QV),
    ("SmolLM2-135M", BASE, ALL),
    ("Mistral-7B", Base("mistral", "", "0" * 64, 14_483_464_192, MISTRAL), QV),
)


def size(content: RecordDict) -> tuple[int, int]:
    """Bytes and number of the objects that Flower makes of a message's content."""
    objects = get_all_nested_objects(content).values()
    return sum(len(one.deflate()) for one in objects), len(objects)


def messages(plan: Plan, root: Path) -> dict[str, RecordDict]:
    """What goes up and down, by whose it is. fedmed's adapter that goes down is made of three sites' that go up."""
    place = fedmed.Workspace(root)
    place.plan_path.write_bytes(plan.to_bytes())
    for number, site in enumerate(plan.sites.names):
        write_contribution(plan, site, number, place.contribution(site))
    folders = [place.contribution(site) for site in plan.sites.names]
    fedmed.aggregate(place, folders, fedmed.AggregationSettings(weights="tokens"))
    up, down = read(folders[0]), read(place.global_adapter(1))
    metrics = MetricRecord({"train_loss": 1.0, "num-examples": 1000})
    settings = ConfigRecord({"server-round": 1, "save_path": "results/2026-01-01_00-00-00"})
    return {
        "flowertune-llm, up": RecordDict({"arrays": arrays(up), "metrics": metrics}),
        "flowertune-llm, down": RecordDict({"arrays": arrays(down), "config": settings}),
        "fedmed, up": make_content(pack(up | {f"{CONTRIBUTION_NAME}.sig": SIGNATURE}), site="A", round=1),
        "fedmed, down": make_content(pack(down | {f"{AGGREGATE_NAME}.sig": SIGNATURE}), round=2),
    }


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arrays(files: dict[str, bytes]) -> ArrayRecord:
    """The state dict of PEFT, whose names an adapter's file has."""
    return ArrayRecord(safetensors.torch.load(files["adapter_model.safetensors"]))


def main() -> None:
    for name, base, targets in SHAPES:
        plan = Plan(base, Lora(targets=targets), Prompt(), Training(), Sites(("A", "B", "C"), 2))
        numbers = 4 * plan.num_parameters
        print(f"{name}, r = {plan.lora.r} on {', '.join(targets)}: {numbers:,} bytes of numbers")
        with tempfile.TemporaryDirectory() as folder:
            for whose, content in messages(plan, Path(folder)).items():
                num_bytes, num_objects = size(content)
                print(f"  {whose}: {num_bytes:,} bytes ({num_bytes / numbers:.4f} times), {num_objects} objects")


if __name__ == "__main__":
    main()
