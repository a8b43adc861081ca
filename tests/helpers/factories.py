"""Federations without a model: plans, signed contributions and workspaces made with numpy alone, in milliseconds."""

import shutil
from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives import serialization

from fedmed_cli.adapters import archive, card
from fedmed_cli.adapters.adapter import adapter_files, plan_adapter
from fedmed_cli.adapters.folder import CONTRIBUTION_NAME
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.federation import coordinator
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.plan import Base, Plan, Prompt, Sites, Training
from fedmed_cli.records.signatures import Ed25519PrivateKey, Signer, sign
from fedmed_cli.workspace import PLAN_NAME, PLAN_SIGNATURE_NAME, Workspace
from fedmed_cli.workspace.durable import write_folder

SITES = ("A", "B", "C")


def make_signer(seed):
    """A key that is the same in every run."""
    private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    return Signer.of(private)


SIGNERS = {name: make_signer(number) for number, name in enumerate((*SITES, "coordinator", "stranger"), 1)}


def write_key(path, signer):
    """The file of a private key, without a passphrase."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    path.write_bytes(signer.private.private_bytes(encoding, form, serialization.NoEncryption()))
    path.chmod(0o600)
    return path


def make_plan(signed=True, hidden=16, layers=2, r=4):
    attention = "model.layers.*.self_attn."
    linear = {attention + "q_proj": (hidden, hidden, layers), attention + "k_proj": (hidden // 2, hidden, layers)}
    linear[attention + "v_proj"] = (hidden // 2, hidden, layers)
    keys = {name: SIGNERS[name].public for name in (*SITES, "coordinator")} if signed else {}
    base = Base("tiny", "", "ab" * 32, 4_000_000, linear)
    return Plan(base, Lora(r=r, alpha=2.0 * r), Prompt(), Training(seed=7), Sites(SITES, 2, keys=keys))


def write_plan(workspace, plan, signers=SIGNERS):
    """Write a plan as its coordinator does, signed where it pins the coordinator's key."""
    workspace.root.mkdir(parents=True, exist_ok=True)
    workspace.plan_path.write_bytes(plan.to_bytes())
    signature = workspace.root / PLAN_SIGNATURE_NAME
    signature.unlink(missing_ok=True)
    if "coordinator" in plan.sites.keys:
        signer = next(one for one in signers.values() if one.public == plan.sites.keys["coordinator"])
        signature.write_bytes(sign(signer, plan.to_bytes()))


def send_plan(root, home):
    """Copy the plan, with its signature where there is one, as the coordinator sends it."""
    for path in root.glob(f"{PLAN_NAME}*"):
        shutil.copy(path, home)


def trained(plan, start, seed):
    """An adapter that somebody could have trained from `start`."""
    rng = np.random.default_rng(seed)
    factors = {
        module: tuple((x + rng.normal(0, 0.02, x.shape)).astype(np.float32) for x in pair)
        for module, pair in start.factors.items()
    }
    return plan_adapter(plan, factors)


def write_adapter(folder, adapter):
    """An adapter's folder without a record."""
    folder.mkdir(exist_ok=True)
    for name, data in adapter_files(adapter, "a card").items():
        (folder / name).write_bytes(data)
    return folder


def contribution(plan, site, start, number=1, seed=None, signer=None):
    """The files of a site's contribution."""
    adapter = trained(plan, start, sum(site.encode()) + number if seed is None else seed)
    files = adapter_files(adapter, card.card(plan.base, adapter, "a title", "an origin"))
    record = Contribution(
        site=site,
        round=number,
        plan=plan.digest,
        sites=plan.sites.digest,
        base_fingerprint=plan.base.fingerprint,
        parent=start.digest,
        adapter=adapter.digest,
        adapter_bytes=sum(map(len, files.values())),
        base_bytes=plan.base.num_bytes,
        num_examples=100,
        num_tokens=5000,
        num_truncated=1,
        num_skipped=0,
        max_steps=3,
        num_trained_examples=6,
        num_trained_tokens=300,
        per_device_train_batch_size=2,
        losses=(2.5, 2.25, 2.125),
        validation_before=None,
        validation_after=None,
        update_norm=1.5,
        files={name: sha256_bytes(data) for name, data in files.items()},
        run={"created": "2026-01-01T00:00:00Z", "seconds": 1.5},
    )
    files[CONTRIBUTION_NAME] = record.to_bytes()
    if signer is not None:
        files[f"{CONTRIBUTION_NAME}.sig"] = sign(signer, files[CONTRIBUTION_NAME])
    return files


def make_workspace(root, plan, num_rounds=0, mailbox=True, settings=AggregationSettings()):
    """A workspace with `num_rounds` rounds, and contributions to the next one in its mailbox."""
    workspace = Workspace(root)
    write_plan(workspace, plan)
    signed = bool(plan.sites.keys)
    for number in range(1, num_rounds + 2):
        start = archive.starting_adapter(workspace, plan, number)
        for site in SITES:
            files = contribution(plan, site, start, number, signer=SIGNERS[site] if signed else None)
            workspace.set_aside(workspace.contribution(site))
            if number <= num_rounds or mailbox:
                write_folder(workspace.contribution(site), dict(files))
        if number <= num_rounds:
            paths = [workspace.contribution(site) for site in SITES]
            coordinator.aggregate(workspace, paths, settings, signer=SIGNERS["coordinator"] if signed else None)
    return workspace


def with_keys(plan, keys):
    return replace(plan, sites=replace(plan.sites, keys=keys))


def without_keys(plan):
    return with_keys(plan, {})


def peft_config(lora: Lora):
    """The same LoRA in PEFT's own words."""
    import peft

    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        use_rslora=lora.use_rslora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        task_type="CAUSAL_LM",
    )
