"""Random mutations of every kind of file that fedmed reads, and what must hold for each.

A target is a file of a federation that is in order, and a `check` that reads its mutated bytes as a command
would. The check may refuse with a FedmedError. Anything else that it raises is a traceback a user would see;
what it accepts it hands to assertions of its own: in a signed folder nothing but the original may pass, and
in an unsigned file every value must be in its range.
"""

import gzip
import io
import json
import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters import bundle as bundles
from fedmed_cli.adapters.adapter import CONFIG_NAME, WEIGHTS_NAME, initial_factors, plan_adapter
from fedmed_cli.adapters.folder import AGGREGATE_NAME, CONTRIBUTION_NAME
from fedmed_cli.adapters.gate_steps import MAX_SMALL_FILE_BYTES
from fedmed_cli.adapters.safetensors import MAX_HEADER_BYTES
from fedmed_cli.cli.tables.pictures import picture
from fedmed_cli.data import examples
from fedmed_cli.data.bad_rows import DEFAULT_MAX_BAD, BadRows
from fedmed_cli.data.batches import json_lines
from fedmed_cli.data.sources import Source
from fedmed_cli.errors import ConflictError, FedmedError, InputError
from fedmed_cli.evaluation import mcq_files, site_matrix
from fedmed_cli.records import signatures
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.audit import Audit, CanaryAudit, Membership
from fedmed_cli.records.codec import MAX_RECORD_BYTES, encode
from fedmed_cli.records.comparison import (
    ChoiceScore,
    Comparison,
    Generated,
    Matrix,
    MatrixSite,
    MultipleChoice,
    OverlapScore,
    Pooled,
    Rate,
    Score,
    Shares,
    Tally,
)
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.export import Comparison as ExportComparison
from fedmed_cli.records.export import Export
from fedmed_cli.records.lora import Lora
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.metrics import metric_line, read_metrics
from fedmed_cli.records.personal import Personal
from fedmed_cli.records.plan import MAX_PLAN_BYTES, PUBLIC_KEY, Plan
from fedmed_cli.records.privacy import LedgerEntry, Mechanism
from fedmed_cli.records.scores import Scores, SiteScore
from fedmed_cli.records.split import DivisionRecord, SiteCounts, SplitRecord
from fedmed_cli.reporting.parts import Figure
from fedmed_cli.reporting.tables.comparison import comparison_parts, matrix_parts
from fedmed_cli.trust.audit_log import AuditLog
from fedmed_cli.trust.ledger import Ledger
from fedmed_cli.workspace import PLAN_SIGNATURE_NAME, Workspace
from helpers import factories
from helpers.counted import TooMuchWork, count_calls

# How many functions, of Python or of C, a check may call: what any file takes, and for each byte of it.
CALLS, CALLS_PER_BYTE = 200_000, 20
FILLS = [
    b" ",
    b"\n",
    b"0",
    b"9",
    b"[",
    b"{",
    b'"',
    b"\\",
    b".",
    b"a",
    b"\x00",
    b"\xff",
    b"#",
    b"[]",
    b"{}",
    b"1,",
    b"''",
]
TOKENS = [
    b"-1", b"0", b"1e999", b"-1e999", b"NaN", b"null", b"true", b"{}", b"[]", b'""', b'"', b"\\", b",", b":",
    b"99999999999999999999", b"1" * 400, b"1.0", b"1e5", b"\\ud800", b"\\u0000", b"\x00", b"\x1b[2J", b"\xff", b"\n",
    b"2026-01-01",
    b"[" * 50, b"../../x", b"\xe2\x80\xae", b"Infinity", b"0x" + b"f" * 5000, b"a." * 300, b"#", b"=", b"'''",
]  # fmt: skip


class Silent(AssertionError):
    """Something was accepted that must not be."""


@dataclass
class Target:
    """A file, the check of its mutated bytes, the regions of it to aim at, and how large a reader takes it at most."""

    name: str
    data: bytes
    check: object
    regions: dict = field(default_factory=dict)
    limit: int = 0


@dataclass
class Result:
    """How many mutations were tried and refused by exception, by target and region."""

    tried: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    most_calls: int = 0


def mutate(rng, data, region):
    """One mutation of `data` that begins in the region (start, end)."""
    start, end = region
    at = rng.randrange(start, max(start + 1, end))
    length = min(rng.choice((1, 1, 2, 4, 8, 64, 512)), max(0, len(data) - at))
    kind = rng.randrange(9)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + rng.randbytes(length) + data[at + length :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.choice((1, 4, 100))) + data[at:]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[:at]
    if kind == 5:
        return data[: at + length] + data[at:]
    if kind == 6:
        other = rng.randrange(max(1, len(data)))
        return data[:at] + data[other : other + length] + data[at + length :]
    if kind == 7:
        return data[:at] + rng.choice(TOKENS) + data[at + length :]
    # A whole number or word of a text file is replaced by a token.
    end = at
    while end < len(data) and data[end : end + 1].isalnum():
        end += 1
    return data[:at] + rng.choice(TOKENS) + data[end:]


def enlarge(rng, data, limit):
    """`data` grown to `limit` bytes: by one character, by a part of it, or by numbered keys, some of them twice."""
    room = max(0, limit - len(data))
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(4)
    if kind == 0:
        fill = rng.choice(FILLS) * room
    elif kind == 1:
        part = data[at : at + rng.choice((8, 64, 512))] or b"x"
        fill = part * (room // len(part))
    elif kind == 2:
        fill = b"".join(b"k%x = 1\n" % number for number in range(room // 10))
    else:
        objects = [place + 1 for place, byte in enumerate(data) if byte == ord("{")]
        at = rng.choice(objects) if objects else at
        keys = b"".join(b'"%x":1,' % number for number in range(room // 10))
        fill = keys + keys[-60:] * rng.randrange(2)
    return data[:at] + fill[:room] + data[at:]


def enlarge_header(rng, data, limit):
    """A safetensors file whose header is grown to `limit` bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = enlarge(rng, data[8:end], limit)
    return len(header).to_bytes(8, "little") + header + data[end:]


def run(target, count, seed, result):
    """Try `count` mutations, each hundredth of a file as large as may be.

    Raised are an exception that is not a FedmedError, a silent acceptance, and more calls than the size allows.
    """
    rng = random.Random(f"{target.name} {seed}")
    regions = target.regions or {"all": (0, len(target.data))}
    names = list(regions)
    for number in range(count):
        region = names[number % len(names)]
        if target.limit and number % 100 == 50:
            data = (enlarge_header if "header" in regions else enlarge)(rng, target.data, target.limit)
        else:
            data = mutate(rng, target.data, regions[region])
        if rng.random() < 0.1:
            data = mutate(rng, data, (0, len(data)))
        where = f"target {target.name}, region {region}, seed {seed}, number {number}"
        try:
            calls = count_calls(partial(check, target, data, region, result), CALLS + CALLS_PER_BYTE * len(data))
        except (Exception, TooMuchWork) as error:
            error.add_note(f"{where}: {data[:3000]!r}")
            raise
        result.most_calls = max(result.most_calls, calls)
        result.tried[target.name, region] += 1


def check(target, data, region, result):
    """Run a target's check; a refusal with a short message and an exit code of its own is in order."""
    try:
        target.check(data)
    except FedmedError as error:
        result.refused[target.name, region] += 1
        if error.exit_code not in (2, 3, 4, 7) or len(error.message) > 2000:
            raise AssertionError(f"exit code {error.exit_code}, {error.message[:300]!r}") from None


# --- what must hold of what is accepted -------------------------------------------------------------


def in_range(value):
    """Every number of a decoded record is finite and fits into 64 bits; every text is without controls."""
    if isinstance(value, dict):
        for key, part in value.items():
            in_range(key)
            in_range(part)
    elif isinstance(value, list | tuple):
        for part in value:
            in_range(part)
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, int):
        assert abs(value) < 2**63
    elif isinstance(value, str):
        assert all(c in "\n\t" or (c >= " " and c not in "\x7f\x9b\u202e") for c in value)
        value.encode("utf-8")


def contribution_in_range(record):
    in_range(encode(record))
    assert record.site[0].isalnum()
    assert "/" not in record.site
    assert record.round >= 1
    counts = (record.num_examples, record.num_tokens, record.num_truncated, record.num_skipped, record.max_steps)
    assert min(*counts, record.update_norm, record.adapter_bytes, record.base_bytes) >= 0
    assert all(loss >= 0 for loss in record.losses)
    assert all(len(digest) == 64 for digest in (record.plan, record.parent, record.adapter, *record.files.values()))


def aggregate_in_range(record):
    in_range(encode(record))
    assert record.round >= 1
    for decision in record.sites.values():
        assert 0 <= decision.weight <= 2
        assert 0 <= decision.clip_factor <= 1
        assert all(abs(cosine) < 1.0001 for cosine in decision.evidence.cosines.values())
    assert record.truncation.overall >= 0


def adapter_in_range(adapter, plan):
    assert adapter.alpha == plan.lora.alpha
    assert adapter.use_rslora == plan.lora.use_rslora
    assert list(adapter.factors) == list(plan.modules)
    for module, (a, b) in adapter.factors.items():
        size_out, size_in = plan.modules[module]
        assert adapter.rank(module) == plan.rank(module)
        assert adapter.scale(module) == plan.scale(module)
        assert a.shape == (plan.rank(module), size_in)
        assert b.shape == (size_out, plan.rank(module))
        assert np.isfinite(a).all()
        assert np.isfinite(b).all()
        assert max(np.abs(a).max(), np.abs(b).max()) <= 1e6


def plan_in_range(plan):
    in_range(encode(plan))
    for module, shape in plan.modules.items():
        assert 1 <= plan.rank(module) <= min(shape)
        assert 0 < plan.scale(module) <= 65536
    assert 1 <= plan.sites.min_sites <= len(plan.sites.names)
    again = Plan.from_bytes(plan.to_bytes(), "again")
    assert again == plan


# --- the targets ------------------------------------------------------------------------------------


def make_targets(folder):
    """All targets, with their files under `folder`."""
    plan = factories.make_plan(hidden=8, layers=1, r=2)
    workspace = factories.make_workspace(folder / "signed", plan, 1)
    start = archive.starting_adapter(workspace, plan, 2)
    bare = factories.without_keys(plan)
    targets = []

    def signed(path, read, name):
        """Each file of a signed folder: nothing but the original passes."""
        for file in sorted(path.iterdir()):
            original = file.read_bytes()

            def check(data, file=file, original=original):
                try:
                    file.write_bytes(data)
                    read()
                    if data != original:
                        raise Silent(f"{file.name} was accepted changed")
                finally:
                    file.write_bytes(original)

            targets.append(Target(f"{name} {file.name}", original, check, *aims_at(file.name, original)))

    path = workspace.contribution("B")
    signed(path, lambda: gate.read_contribution(path, plan, (2, start.digest)), "signed contribution")
    newest = workspace.global_adapter(1)
    signed(newest, lambda: gate.read_global(newest, plan), "signed global")

    for file in (workspace.plan_path, workspace.root / PLAN_SIGNATURE_NAME):

        def check_plan(data, file=file, original=file.read_bytes()):
            try:
                file.write_bytes(data)
                workspace.read_sent_plan()
                if data != original:
                    raise Silent(f"{file.name} was accepted changed")
            finally:
                file.write_bytes(original)

        targets.append(Target(f"signed {file.name}", file.read_bytes(), check_plan, limit=MAX_PLAN_BYTES))

    bundle = folder / "B.fedmed.tar"
    packed = bundles.pack(gate.read_folder(path, plan).files)

    def check_bundle(data):
        bundle.write_bytes(data)
        gate.read_contribution(bundle, plan, (2, start.digest))
        if data != packed:
            raise Silent("a bundle was accepted changed")

    targets.append(Target("signed bundle", packed, check_bundle, limit=MAX_HEADER_BYTES))

    lora = Lora(2, 4.0, use_rslora=True, rank_pattern={"q_proj": 3}, alpha_pattern={"self_attn.v_proj": 5.0})
    patterned = replace(bare, lora=lora)

    def unsigned(kind, plan, files):
        """The config and the weights of a folder without a record: what passes is what the plan says."""
        plain = folder / kind
        plain.mkdir()
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            (plain / name).write_bytes(files[name])
        for name in (CONFIG_NAME, WEIGHTS_NAME):

            def check_plain(data, name=name):
                try:
                    (plain / name).write_bytes(data)
                    adapter_in_range(gate.read_folder(plain, plan).adapter, plan)
                finally:
                    (plain / name).write_bytes(files[name])

            targets.append(Target(f"{kind} {name}", files[name], check_plain, *aims_at(name, files[name])))

    first = plan_adapter(patterned, initial_factors(patterned))
    unsigned("patterned", patterned, factories.contribution(patterned, "B", first, 1))
    files = factories.contribution(bare, "B", start, 2)
    unsigned("unsigned", bare, files)

    contribution = files[CONTRIBUTION_NAME]
    aggregate = (newest / AGGREGATE_NAME).read_bytes()
    plan_bytes = plan.to_bytes()
    counts = SiteCounts(80, 10, 5, 5, {"a": 60, "other": 40}, 0.25)
    split = SplitRecord(
        source="file", source_digest="0" * 64, method="dirichlet", column=None, label_column="label", group_by=None,
        alpha=0.5, seed=1, limit=None, requested_sizes=None, shares={"train": 0.8}, num_examples=100, num_groups=90,
        num_moved=1, checks={"rows": 100}, sites={"A": counts, "B": counts},
    ).to_bytes()  # fmt: skip
    division = DivisionRecord("A", "0" * 64, None, 1, 80, 10, 10, 100).to_bytes()
    interval = Interval(0.1, 0.0, 0.2)
    score = Score(1.0, 2.7, 0.1, 10, 10, 100, interval, None, Tally(6, 1, 3))
    rate = Rate(Interval(0.5, 0.4, 0.6), interval)
    overlap = Generated(10, 9, 64, {"base": OverlapScore(rate, rate, 1, 2)})
    choices = MultipleChoice("x.jsonl", "0" * 64, "options", 10, 1, 5, 0.25, {
        "base": ChoiceScore(rate, rate, rate, rate, 2),
    })  # fmt: skip
    comparison = Comparison(
        plan.digest, plan.base.fingerprint, "test", "0" * 64, 1000, 0, {"base": None, "A": "ab" * 32},
        {"base": {"overall": score}, "A": {"overall": score}}, choices, {"source": {"other": {"base": score}}}, overlap,
        1, 2, {"A": interval}, {"B": interval}, {"A": Shares(interval)}, 3, "A", {"global": "A"}, {"seconds": 1.5},
    ).to_bytes()  # fmt: skip
    other = Comparison(
        plan.digest, plan.base.fingerprint, "test", "1" * 64, 1000, 0, {"base": None}, {"base": {"overall": score}},
        site="B",
    ).to_bytes()  # fmt: skip
    (folder / "compare-B.json").write_bytes(other)
    cell = MatrixSite("0" * 64, 10, 10, {"base": score})
    merged = Matrix(
        plan.digest, "ab" * 32, 1, {"base": None}, {"A": cell}, {"base": 1.0}, {"global": "A"}, {"A": "0" * 64}
    ).to_bytes()
    pooled = Pooled(
        "0" * 64, plan.digest, "ab" * 32, start.digest, "1" * 64, "2" * 64, 10, 100, 101, 1, 3, 2, 1, (2.0, 1.0)
    ).to_bytes()
    personal = Personal(
        "A", 1, plan.digest, "ab" * 32, start.digest, "1" * 64, 0.5, {"0": 2.0, "0.5": 1.9}, interval, 10, 10, 9, 80, 3,
        {"README.md": "2" * 64},
    ).to_bytes()  # fmt: skip
    gains = {"0" * 64: SiteScore(0.1, 0.01)}
    scores = Scores("A", 1, plan.digest, "ab" * 32, start.digest, "0" * 64, 10, 10, gains, {"seconds": 1.5}).to_bytes()
    membership = Membership(10, 10, 20, Interval(0.5, 0.4, 0.6), Interval(0.01, 0.0, 0.02))
    audit = Audit("A", 1, plan.digest, "0" * 64, 8.0, 1e-5, membership, CanaryAudit(8, 4, 4, 2, 0.1, 1, 1.5)).to_bytes()
    exported = Export(
        "gguf", "0" * 64, "ab" * 32, plan.digest, "1" * 64, 1, "A", {"adapter.gguf": "2" * 64},
        ExportComparison(3, 30, "float32", 0.0, 0.01, 0.1, 0.1, 1.0), "it was tried", "nothing",
    ).to_bytes()  # fmt: skip
    entry = LedgerEntry(
        "A", plan.digest, 1, "0" * 64, ("0" * 16,), 10, "group", Mechanism(0.1, 1.0, 3), "1" * 64, "now", "0" * 64
    )
    ledger = json.dumps(entry.to_dict()).encode() + b"\n"
    pins = json.dumps(plan.sites.keys).encode()
    metrics = b"".join(metric_line("round", round=number, loss=2.5) for number in range(5))
    rows = b"".join(json.dumps({"question": f"q {n}", "answer": f"a {n}"}).encode() + b"\n" for n in range(20))
    public = factories.SIGNERS["A"].public + " a comment\n"
    key = factories.write_key(folder / "key", factories.SIGNERS["A"])
    message = b"a message"
    signature = signatures.sign(factories.SIGNERS["A"], message)

    parquet, arrow = table_files()

    def check_metrics(data):
        (folder / "metrics.jsonl").write_bytes(data)
        for event in read_metrics(folder / "metrics.jsonl")[0]:
            in_range(event)

    def check_rows(suffix, pack=lambda data: data):
        def check(data):
            path = folder / f"rows{suffix}"
            path.write_bytes(pack(data))
            bad = BadRows()
            for batch in Source([str(path)]).batches(bad):
                json_lines(batch)
            bad.check(DEFAULT_MAX_BAD)

        return check

    def check_merge(data):
        (folder / "compare-A.json").write_bytes(data)
        merged = site_matrix.merge(bare, [folder / "compare-A.json", folder / "compare-B.json"])
        in_range(encode(merged))
        matrix_parts(merged, plan)

    def comparison_is_shown(record):
        in_range(encode(record))
        for part in comparison_parts(record, plan):
            if isinstance(part, Figure):
                picture(part)

    def check_choices(data):
        (folder / "choices.jsonl").write_bytes(data)
        for question in mcq_files.read_questions(folder / "choices.jsonl", 100, lambda text: None).questions:
            assert 0 <= question.answer < len(question.options)

    def check_workspace_rows(data):
        (folder / "train.jsonl").write_bytes(data)
        examples.read_jsonl(folder / "train.jsonl")

    def check_key(data):
        key.write_bytes(data)
        signatures.load(key, None)

    def check_signature(data):
        if signatures.verify(message, data, "x.sig") != factories.SIGNERS["A"].public or data != signature:
            raise Silent("a signature was accepted changed")

    def check_public(data):
        line = signatures.parse_public(data.decode("utf-8", "replace"), "key")
        assert PUBLIC_KEY.fullmatch(line)
        assert signatures.fingerprint(line).startswith("SHA256:")

    def check_ledger(data):
        (folder / "privacy.jsonl").write_bytes(data)
        try:
            entries = Ledger(folder / "privacy.jsonl", folder / "seal.json").read()
        except ConflictError as error:  # a line that does not follow the one before
            raise InputError(error.message) from None
        in_range([encode(entry) for entry in entries])

    watched = AuditLog(Workspace(folder / "watched"))
    for number in range(1, 4):
        watched.note("opened", plan.digest, number, "coordinator")
    audit_files = [watched.workspace.private / name for name in ("audit.jsonl", "audit-seal.json")]
    audit_log, seal = (path.read_bytes() for path in audit_files)

    def check_audit_log(data):
        audit_files[0].write_bytes(data)
        in_range([encode(entry) for entry in watched.read()])

    def check_seal(data):
        audit_files[0].write_bytes(audit_log)
        audit_files[1].write_bytes(data)
        try:
            watched.read()
        finally:
            audit_files[1].write_bytes(seal)

    def check_pins(data):
        workspace.make_private()
        (workspace.private / "pinned.json").write_bytes(data)
        for key in workspace.known_pins().values():
            assert signatures.fingerprint(key).startswith("SHA256:")

    def record(kind, holds=lambda value: in_range(encode(value))):
        return lambda data: holds(kind.from_bytes(data, "record"))

    multiple = b"".join(
        json.dumps({"question": f"q {n}", "options": {"A": f"a {n}", "B": f"b {n}"}, "answer": "B"}).encode() + b"\n"
        for n in range(20)
    )
    csv = b"question,answer\n" + b"".join(b'q %d,"a, %d"\n' % (n, n) for n in range(20))
    listed = json.dumps([{"question": f"q {n}", "answer": f"a {n}"} for n in range(20)]).encode()
    targets += [
        Target(
            "unsigned contribution.json",
            contribution,
            record(Contribution, contribution_in_range),
            limit=MAX_RECORD_BYTES,
        ),
        Target("unsigned aggregate.json", aggregate, record(Aggregate, aggregate_in_range), limit=MAX_RECORD_BYTES),
        Target("federation.toml", plan_bytes, record(Plan, plan_in_range), limit=MAX_PLAN_BYTES),
        Target(
            "federation.toml with patterns", patterned.to_bytes(), record(Plan, plan_in_range), limit=MAX_PLAN_BYTES
        ),
        Target("split.json", split, record(SplitRecord), limit=MAX_RECORD_BYTES),
        Target("division.json", division, record(DivisionRecord), limit=MAX_RECORD_BYTES),
        Target("compare.json", comparison, record(Comparison, comparison_is_shown), limit=MAX_RECORD_BYTES),
        Target("compare-SITE.json to merge", comparison, check_merge, limit=MAX_RECORD_BYTES),
        Target("matrix.json", merged, record(Matrix), limit=MAX_RECORD_BYTES),
        Target("personal.json", personal, record(Personal), limit=MAX_RECORD_BYTES),
        Target("pooled.json", pooled, record(Pooled), limit=MAX_RECORD_BYTES),
        Target("multiple choice", multiple, check_choices),
        Target("scores.json", scores, record(Scores), limit=MAX_RECORD_BYTES),
        Target("audit.json", audit, record(Audit), limit=MAX_RECORD_BYTES),
        Target("export.json", exported, record(Export), limit=MAX_RECORD_BYTES),
        Target("privacy.jsonl", ledger, check_ledger, limit=MAX_RECORD_BYTES),
        Target("audit.jsonl", audit_log, check_audit_log, limit=MAX_RECORD_BYTES),
        Target("audit-seal.json", seal, check_seal, limit=MAX_RECORD_BYTES),
        Target("pinned.json", pins, check_pins, limit=MAX_RECORD_BYTES),
        Target("metrics.jsonl", metrics, check_metrics),
        Target("detached signature", signature, check_signature, limit=signatures.MAX_SIGNATURE_BYTES),
        Target("public key", public.encode(), check_public, limit=signatures.MAX_KEY_BYTES),
        Target("private key", key.read_bytes(), check_key, limit=signatures.MAX_KEY_BYTES),
        Target("examples train.jsonl", rows, check_workspace_rows),
        Target("examples data.jsonl", rows, check_rows(".jsonl")),
        Target("examples data.json", listed, check_rows(".json")),
        Target("examples data.csv", csv, check_rows(".csv")),
        Target("examples data.jsonl.gz", gzip.compress(rows), check_rows(".jsonl.gz")),
        Target("examples in gzip", rows, check_rows(".jsonl.gz", gzip.compress)),
        Target("examples data.parquet", parquet, check_rows(".parquet")),
        Target("examples data.arrow", arrow, check_rows(".arrow")),
    ]
    return targets


def table_files():
    """Examples as the bytes of a Parquet and of an Arrow file, with a column of codes and one of nested values."""
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    columns = {"question": [f"q {n}" for n in range(20)], "answer": [f"a {n}" for n in range(20)]}
    columns["label"] = pyarrow.array(["x", "y"] * 10).dictionary_encode()
    columns["turns"] = [[{"role": "user", "content": "é"}]] * 20
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), parquet)
    pyarrow.feather.write_feather(pyarrow.table(columns), arrow, compression="uncompressed")
    return parquet.getvalue(), arrow.getvalue()


def aims_at(name, data):
    """The regions of an adapter's file to aim at, and how large the gate reads it at most.

    The regions are the parts of a safetensors file, else the whole file and its two ends.
    """
    if name == WEIGHTS_NAME:
        end = 8 + int.from_bytes(data[:8], "little")
        return {"length": (0, 8), "header": (8, end), "data": (end, len(data))}, MAX_HEADER_BYTES
    limit = signatures.MAX_SIGNATURE_BYTES if name.endswith(".sig") else MAX_SMALL_FILE_BYTES
    return {"all": (0, len(data)), "head": (0, min(40, len(data))), "tail": (max(0, len(data) - 40), len(data))}, limit
