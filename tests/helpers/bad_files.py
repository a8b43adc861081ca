"""The hostile corpus: named ways to make a file that fedmed must refuse, each with its exit code and its message.

A case changes one thing of a federation that is in order. Where a case says `seal`, the attacker controls the
site and makes the digests hold again; where it says `sign`, it has the site's key as well.
"""

import base64
import gzip
import io
import json
import os
import struct
import tarfile
from dataclasses import dataclass

import numpy as np

from fedmed_cli.adapters import bundle as bundles
from fedmed_cli.records import signatures
from fedmed_cli.records.digests import sha256_bytes
from helpers import factories

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "contribution.json"
SIGNATURE = RECORD + ".sig"


@dataclass(frozen=True)
class Case:
    """`change` spoils the place; `main(argv(place))` must then leave with `code` and say `message`."""

    name: str
    code: int
    message: str
    change: object
    argv: object


class Place:
    """A workspace in which site B's contribution is spoiled."""

    def __init__(self, workspace, plan):
        self.workspace, self.plan = workspace, plan
        self.root = workspace.root
        self.folder = workspace.contribution("B")

    def read(self, name):
        return (self.folder / name).read_bytes()

    def write(self, name, data):
        (self.folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    def config(self, **changes):
        self.write(CONFIG, json.dumps(json.loads(self.read(CONFIG)) | changes))

    def raw_config(self, key, text):
        """Set a key of the config to a piece of JSON that Python would not write."""
        value = json.loads(self.read(CONFIG))
        value.pop(key, None)
        self.write(CONFIG, json.dumps(value)[:-1] + f', "{key}": {text}}}')

    def tensors(self):
        data = self.read(WEIGHTS)
        (length,) = struct.unpack("<Q", data[:8])
        return json.loads(data[8 : 8 + length]), data[8 + length :]

    def weights(self, header, data):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.write(WEIGHTS, struct.pack("<Q", len(text)) + text + data)

    def header(self, change):
        header, data = self.tensors()
        change(header)
        self.weights(header, data)

    def values(self, change):
        """Change the float32 values of all tensors."""
        header, data = self.tensors()
        values = np.frombuffer(data, "<f4").copy()
        change(values)
        self.weights(header, values.tobytes())

    def record(self, **changes):
        self.write(RECORD, json.dumps(json.loads(self.read(RECORD)) | changes))

    def raw_record(self, old, new):
        data = self.read(RECORD).decode()
        assert old in data, old
        self.write(RECORD, data.replace(old, new, 1))

    def seal(self):
        names = [name for name in (CONFIG, WEIGHTS, "README.md") if (self.folder / name).exists()]
        self.record(files={name: sha256_bytes(self.read(name)) for name in names})

    def sign(self, signer="B"):
        self.write(SIGNATURE, signatures.sign(factories.SIGNERS[signer], self.read(RECORD)))

    def bundle(self, data=None):
        """Replace the folder by a bundle: these bytes, or what tar would make of the folder's files."""
        files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()
        (self.root / "adapters/B.fedmed.tar").write_bytes(bundles.pack(files) if data is None else data(files))

    def plan_text(self, old, new):
        text = (self.root / "federation.toml").read_text()
        assert old in text, old
        (self.root / "federation.toml").write_text(text.replace(old, new, 1))


CASES = []


def _aggregate(place):
    return ["aggregate", "-C", str(place.root)]


def _verify(place):
    return ["verify", "-C", str(place.root)]


def case(name, code, message, argv=_aggregate):
    def add(change):
        CASES.append(Case(name, code, message, change, argv))
        return change

    return add


def quick(name, code, message, change, argv=_aggregate):
    CASES.append(Case(name, code, message, change, argv))


# --- the folder -------------------------------------------------------------------------------------


@case("folder is a link", 3, "adapters/B: is a link, expected an adapter folder")
def _(place):
    place.folder.rename(place.root / "elsewhere")
    place.folder.symlink_to(place.root / "elsewhere")


quick("no config", 3, "has no adapter_config.json", lambda p: (p.folder / CONFIG).unlink())
quick("no weights", 3, "has no adapter_model.safetensors", lambda p: (p.folder / WEIGHTS).unlink())


@case("pickled weights and no safetensors", 3, "holds 'adapter_model.bin'; files that can carry code")
def _(place):
    (place.folder / WEIGHTS).rename(place.folder / "adapter_model.bin")


quick("pickle beside the weights", 3, "holds 'optimizer.pt'; files that can", lambda p: p.write("optimizer.pt", b"x"))
quick("pickle in capitals", 3, "holds 'STATE.PKL'; files that can", lambda p: p.write("STATE.PKL", b"x"))
quick("a program", 3, "holds 'modeling.py', which does not belong", lambda p: p.write("modeling.py", "import os"))
quick("a hidden file", 3, "holds '.hidden', which does not belong", lambda p: p.write(".hidden", b""))
quick("a folder inside", 3, "holds 'inner', which does not belong", lambda p: (p.folder / "inner").mkdir())
quick("an escape in a name", 3, r"holds '\x1b[31mred', which does", lambda p: p.write("\x1b[31mred", b""))
quick(
    "a sharded index",
    3,
    "holds 'model.safetensors.index.json'",
    lambda p: p.write("model.safetensors.index.json", "{}"),
)


def _link(name, target):
    def change(place):
        (place.folder / name).unlink()
        (place.folder / name).symlink_to(target)

    return change


quick("weights are a link", 3, "adapter_model.safetensors: is a link", _link(WEIGHTS, "/etc/passwd"))
quick("config links to an endless device", 3, "adapter_config.json: is a link", _link(CONFIG, "/dev/zero"))


@case("weights are a pipe", 3, "adapter_model.safetensors: is not a plain file")
def _(place):
    (place.folder / WEIGHTS).unlink()
    os.mkfifo(place.folder / WEIGHTS)


@case("config is a folder", 3, "adapter_config.json: is not a plain file")
def _(place):
    (place.folder / CONFIG).unlink()
    (place.folder / CONFIG).mkdir()


@case("forty files", 3, "holds more than 32 files")
def _(place):
    for number in range(40):
        place.write(f"{number}.txt", b"")


quick(
    "a long README",
    3,
    "README.md: expected at most 1,000,000 bytes, found 2,000,000",
    lambda p: p.write("README.md", b"x" * 2_000_000),
)
quick("a terabyte of weights", 3, "found 1,000,000,000,000", lambda p: os.truncate(p.folder / WEIGHTS, 10**12))
quick(
    "a signature without a record",
    3,
    "holds contribution.json.sig, but no contribution.json",
    lambda p: (p.folder / RECORD).unlink(),
)
quick(
    "a signature of nothing",
    3,
    "holds aggregate.json.sig, but no aggregate.json",
    lambda p: p.write("aggregate.json.sig", b"x"),
)

# --- adapter_config.json ----------------------------------------------------------------------------

quick("config is not JSON", 3, "adapter_config.json: is not JSON at line 1, column 2", lambda p: p.write(CONFIG, "{"))
quick(
    "config is not UTF-8", 3, "adapter_config.json: is not UTF-8 at byte 2", lambda p: p.write(CONFIG, b'{"\xff": 1}')
)
quick("config is a list", 3, "adapter_config.json: expected an object, found list", lambda p: p.write(CONFIG, "[]"))
quick(
    "rank twice", 3, "the key 'r' appears twice", lambda p: p.write(CONFIG, p.read(CONFIG).decode()[:-2] + ', "r": 64}')
)
quick("alpha not a number", 3, "NaN is not a number", lambda p: p.raw_config("lora_alpha", "NaN"))
quick(
    "alpha without end",
    4,
    "lora_alpha must be above 0 and at most 65536, found inf",
    lambda p: p.raw_config("lora_alpha", "1e999"),
)
quick("alpha of a million", 4, "at most 65536, found 1000000.0", lambda p: p.config(lora_alpha=1e6))
quick("alpha of zero", 4, "lora_alpha must be above 0 and at most 65536, found 0", lambda p: p.config(lora_alpha=0))
quick("alpha as text", 4, "at most 65536, found '8'", lambda p: p.config(lora_alpha="8"))
quick("alpha as truth", 4, "at most 65536, found True", lambda p: p.config(lora_alpha=True))
quick("another alpha", 4, "the plan expects lora_alpha 8.0, found 9.0", lambda p: p.config(lora_alpha=9))
quick("rank zero", 4, "r must be a whole number from 1 to 65536, found 0", lambda p: p.config(r=0))
quick("rank with a fraction", 4, "r must be a whole number from 1 to 65536, found 4.0", lambda p: p.config(r=4.0))
quick("another rank", 4, "the plan expects rank r 4, found 8", lambda p: p.config(r=8))
quick("five thousand digits", 3, "a number has too many digits", lambda p: p.raw_config("r", "9" * 5000))
quick(
    "a hundred thousand brackets",
    3,
    "expected at most 60,000 lists and objects",
    lambda p: p.raw_config("r", "[" * 100_000 + "]" * 100_000),
)
quick(
    "nested 5,000 deep",
    3,
    "adapter_config.json: nested deeper than 12 levels",
    lambda p: p.raw_config("r", "[" * 5000 + "]" * 5000),
)
quick("half a character", 3, "holds half a character", lambda p: p.raw_config("base_model_name_or_path", r'"\ud800"'))
quick(
    "no rank",
    3,
    "adapter_config.json: r is missing",
    lambda p: p.write(CONFIG, json.dumps({k: v for k, v in json.loads(p.read(CONFIG)).items() if k != "r"})),
)
quick("another kind of adapter", 4, "peft_type must be 'LORA', found 'IA3'", lambda p: p.config(peft_type="IA3"))
quick("biases", 4, "bias must be 'none', found 'all'", lambda p: p.config(bias="all"))
quick("DoRA", 4, "use_dora must be False, found True", lambda p: p.config(use_dora=True))
quick("rsLoRA", 4, "the plan expects use_rslora False, found True", lambda p: p.config(use_rslora=True))
quick("whole modules", 4, "modules_to_save is set", lambda p: p.config(modules_to_save=["embed_tokens"]))
quick(
    "a rank pattern",
    4,
    "the plan expects rank 4 for model.layers.0.self_attn.q_proj, found 64",
    lambda p: p.config(rank_pattern={"q_proj": 64}),
)
quick(
    "an alpha pattern",
    4,
    "the plan expects alpha 8.0 for model.layers.0.self_attn.q_proj, found 9.0",
    lambda p: p.config(alpha_pattern={"q_proj": 9}),
)
quick(
    "an alpha pattern of a million",
    4,
    "alpha_pattern of q_proj must be above 0 and at most 65536, found 1000000.0",
    lambda p: p.config(alpha_pattern={"q_proj": 1e6}),
)
quick(
    "a rank pattern that is a regular expression",
    4,
    "rank_pattern must map plain module names to numbers",
    lambda p: p.config(rank_pattern={"(a+)+$": 4}),
)
quick(
    "a rank pattern that is a list", 4, "rank_pattern must map plain module names", lambda p: p.config(rank_pattern=[4])
)
quick(
    "a pattern of no module",
    4,
    "rank_pattern: 'nothing' means no target module",
    lambda p: p.config(rank_pattern={"nothing": 4}),
)
quick(
    "two patterns of one module",
    4,
    "'q_proj' and 'model.layers.0.self_attn.q_proj' both mean",
    lambda p: p.config(alpha_pattern={"q_proj": 8, "model.layers.0.self_attn.q_proj": 8}),
)
quick("some layers only", 4, "layers_to_transform is set", lambda p: p.config(layers_to_transform=[0]))
quick("layers twice", 4, "layer_replication is set", lambda p: p.config(layer_replication=[[0, 2]]))
quick("trainable tokens", 4, "trainable_token_indices is set", lambda p: p.config(trainable_token_indices=[1]))
quick("biases of LoRA", 4, "lora_bias is set", lambda p: p.config(lora_bias=True))
quick(
    "weights that change the base",
    4,
    "init_lora_weights must be True or 'gaussian', found 'pissa'",
    lambda p: p.config(init_lora_weights="pissa"),
)
quick("transposed weights", 4, "fan_in_fan_out must be False, found True", lambda p: p.config(fan_in_fan_out=True))
quick("a zero for false", 4, "fan_in_fan_out must be False, found 0", lambda p: p.config(fan_in_fan_out=0))
quick(
    "a regular expression that hangs",
    4,
    "must be a plain list of names, found str",
    lambda p: p.config(target_modules="(a+)+$"),
)
quick(
    "a regular expression in the list",
    4,
    "must be a plain list of names, found other entries",
    lambda p: p.config(target_modules=["q_proj|(a+)+$"]),
)
quick(
    "other targets",
    4,
    "the plan expects target_modules ['q_proj', 'v_proj'], found ['k_proj']",
    lambda p: p.config(target_modules=["k_proj"]),
)
quick(
    "a target twice",
    4,
    "found ['q_proj', 'q_proj', 'v_proj']",
    lambda p: p.config(target_modules=["q_proj", "q_proj", "v_proj"]),
)
quick(
    "another base model",
    4,
    "the plan expects base_model_name_or_path tiny, found 'huge'",
    lambda p: p.config(base_model_name_or_path="huge"),
)
quick(
    "an escape in the base's name",
    4,
    "base_model_name_or_path must be at most 1000 printable",
    lambda p: p.config(base_model_name_or_path="\x1b[2Jtiny"),
)
quick(
    "a library to import",
    4,
    "auto_mapping must be null, found dict",
    lambda p: p.config(auto_mapping={"parent_library": "os", "base_model_class": "system"}),
)
quick("a long revision", 4, "revision must be at most 100 printable characters", lambda p: p.config(revision="x" * 101))
quick(
    "dropout without end",
    4,
    "lora_dropout must be from 0 to below 1, found inf",
    lambda p: p.raw_config("lora_dropout", "1e999"),
)
quick(
    "an unknown runtime",
    4,
    "runtime_config must be",
    lambda p: p.config(runtime_config={"ephemeral_gpu_offload": True}),
)

# --- adapter_model.safetensors ----------------------------------------------------------------------

FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
LAST = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"

quick("empty weights", 3, "it has 0 bytes, fewer than 8", lambda p: p.write(WEIGHTS, b""))
quick("seven bytes", 3, "it has 7 bytes, fewer than 8", lambda p: p.write(WEIGHTS, b"1234567"))
quick(
    "a header of 2^63 bytes",
    3,
    "found 9,223,372,036,854,775,808",
    lambda p: p.write(WEIGHTS, struct.pack("<Q", 2**63) + p.read(WEIGHTS)[8:]),
)
quick(
    "a header longer than the file",
    3,
    "is truncated: its header needs 900,008 bytes",
    lambda p: p.write(WEIGHTS, struct.pack("<Q", 900_000) + p.read(WEIGHTS)[8:]),
)
quick("a header that is not JSON", 3, "header: is not JSON", lambda p: p.weights(b"{nonsense", p.tensors()[1]))
quick(
    "a header that begins elsewhere",
    3,
    "header: expected an object, found another first byte",
    lambda p: p.weights(b"  " + json.dumps(p.tensors()[0]).encode(), p.tensors()[1]),
)
quick("no tensor at all", 3, "holds no tensor", lambda p: p.weights({}, b""))


@case("a header of 70 MB", 3, "adapter_model.safetensors: expected at most 1,001,792 bytes, found 70,")
def _(place):
    (place.folder / WEIGHTS).write_bytes(struct.pack("<Q", 70_000_000) + b"{" + b" " * 69_999_999)


@case("thousands of empty tensors", 3, "expected at most 60,000 lists and objects, found 60,3")
def _(place):
    entry = b'"%05d":{"dtype":"F32","shape":[],"data_offsets":[]},'
    text = b"{" + b"".join(entry % number for number in range(15_100))
    text += b"[" * 15_000
    place.weights(text, b"")


@case(
    "a tensor name twice", 3, "header: the key 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight' appears"
)
def _(place):
    header, data = place.tensors()
    text = json.dumps(header)
    place.weights((text[:-1] + f', "{FIRST}": {json.dumps(header[FIRST])}}}').encode(), data)


def _entry(name, **changes):
    return lambda place: place.header(lambda header: header[name].update(changes))


def _rename(old, new):
    def change(place):
        place.header(lambda header: header.update({new: header.pop(old)}))

    return change


quick("a gap between tensors", 3, "header: a gap before tensor", lambda p: p.header(lambda h: h.pop(FIRST)))
quick(
    "tensors that overlap",
    3,
    "header: an overlap before tensor",
    lambda p: p.header(
        lambda h: h[LAST].update(data_offsets=[0, h[LAST]["data_offsets"][1] - h[LAST]["data_offsets"][0]])
    ),
)
quick(
    "bytes after the last tensor",
    3,
    "has 4 bytes after its last tensor",
    lambda p: p.write(WEIGHTS, p.read(WEIGHTS) + b"hide"),
)
quick("a byte is missing", 3, "is truncated: its tensors need", lambda p: p.write(WEIGHTS, p.read(WEIGHTS)[:-1]))
quick(
    "a terminal escape in a tensor name",
    3,
    r"tensor name '\x1b[31m' is not 1 to 256 printable",
    _rename(FIRST, "\x1b[31m"),
)
quick("a tensor without a name", 3, "tensor name '' is not 1 to 256 printable", _rename(FIRST, ""))
quick("a shape of 2^62 by 0", 3, "has an unusable shape", _entry(FIRST, shape=[2**62, 0], data_offsets=[0, 0]))
quick(
    "a shape with truth in it",
    3,
    "'base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight' has an unusable shape",
    _entry(LAST, shape=[True, 4]),
)
quick(
    "negative offsets",
    3,
    "layers.0.self_attn.q_proj.lora_A.weight' has an unusable data_offsets",
    _entry(FIRST, data_offsets=[-256, 0]),
)
quick(
    "offsets with a fraction",
    3,
    "layers.1.self_attn.v_proj.lora_B.weight' has an unusable data_offsets",
    _entry(LAST, data_offsets=[0.0, 1.0]),
)
quick(
    "offsets that do not fit", 3, "has offsets that do not fit its shape [4, 17] of F32", _entry(FIRST, shape=[4, 17])
)
quick("an unknown field", 3, "must have only dtype, shape and data_offsets", _entry(FIRST, stride=[1]))
quick("an unknown dtype", 3, "has an unknown dtype 'F128'", _entry(FIRST, dtype="F128"))
quick("whole numbers as weights", 4, "has dtype I32, expected F32, F16 or BF16", _entry(FIRST, dtype="I32"))
quick("a flat tensor", 4, "has shape [64], expected rank 4", _entry(FIRST, shape=[64]))
quick("a transposed tensor", 4, "has shape [16, 4], expected rank 4", _entry(FIRST, shape=[16, 4]))
quick(
    "an empty side",
    4,
    "has shape [4, 0], expected rank 4",
    lambda p: _grow(p, FIRST.replace("layers.0", "layers.9"), [4, 0]),
)
quick(
    "metadata that is a list",
    3,
    "__metadata__ must map names to texts",
    lambda p: p.header(lambda h: h.update(__metadata__=[1])),
)
quick(
    "a novel in the metadata",
    3,
    "__metadata__ holds more than 20,000 characters",
    lambda p: p.header(lambda h: h.update(__metadata__={"x": "y" * 30_000})),
)
quick(
    "names without their prefix",
    4,
    "tensor 'model.layers.0.self_attn.q_proj.lora_A.weight' is not a LoRA factor",
    _rename(FIRST, FIRST.removeprefix("base_model.model.")),
)


def _grow(place, name, shape):
    """Add a tensor of ones at the end."""
    header, data = place.tensors()
    extra = np.ones(shape, np.float32).tobytes()
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(extra)]}
    place.weights(header, data + extra)


quick(
    "the base's embeddings",
    4,
    "tensor 'base_model.model.model.embed_tokens.weight' is not a LoRA factor",
    lambda p: _grow(p, "base_model.model.model.embed_tokens.weight", [64, 16]),
)
quick(
    "a module that is not a target",
    4,
    "k_proj.lora_A.weight' is of a module that target_modules does not name",
    lambda p: _grow(p, FIRST.replace("q_proj", "k_proj"), [4, 16]),
)
quick(
    "one factor of a pair",
    3,
    "tensor 'base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight' is missing",
    lambda p: _grow(p, FIRST.replace("layers.0", "layers.7"), [4, 16]),
)


@case("a layer that the base has not", 4, "the plan has no module 'model.layers.7.self_attn.q_proj'")
def _(place):
    _grow(place, FIRST.replace("layers.0", "layers.7"), [4, 16])
    _grow(place, FIRST.replace("layers.0", "layers.7").replace("lora_A", "lora_B"), [16, 4])


@case("a module is missing", 3, "tensor 'base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight' is missing")
def _(place):
    header, data = place.tensors()
    names = [LAST.replace("lora_B", "lora_A"), LAST]
    size = sum(header[name]["data_offsets"][1] - header[name]["data_offsets"][0] for name in names)
    for name in names:
        del header[name]
    place.weights(header, data[:-size])


@case("another size than the base's", 4, "the plan expects model.layers.1.self_attn.v_proj to be 8 x 16, found 7 x 16")
def _(place):
    header, data = place.tensors()
    start, end = header[LAST]["data_offsets"]
    header[LAST] = {"dtype": "F32", "shape": [7, 4], "data_offsets": [start, end - 16]}
    place.weights(header, data[:-16])


def _set(index, value):
    return lambda place: place.values(lambda values: values.__setitem__(index, value))


quick("one NaN", 3, "holds 1 values that are NaN or infinite", _set(5, np.nan))
quick("three infinities", 3, "holds 3 values that are NaN or infinite", _set(slice(0, 3), -np.inf))
quick("a value of 1e30", 3, "holds a value of size 1e+30, expected at most 1e+06", _set(0, 1e30))


@case("a NaN in bfloat16", 3, "v_proj.lora_B.weight' holds 2 values that are NaN or infinite")
def _(place):
    header, data = place.tensors()
    start, end = header[LAST]["data_offsets"]
    header[LAST] |= {"dtype": "BF16", "data_offsets": [start, start + (end - start) // 2]}
    place.weights(header, data[:start] + b"\xc0\x7f" * 2 + bytes((end - start) // 2 - 4))


# --- contribution.json ------------------------------------------------------------------------------

quick(
    "a flipped bit in the weights",
    7,
    "adapter_model.safetensors: contribution.json says sha256",
    lambda p: p.write(WEIGHTS, p.read(WEIGHTS)[:-4] + bytes([p.read(WEIGHTS)[-4] ^ 1]) + p.read(WEIGHTS)[-3:]),
)
quick(
    "another README",
    7,
    "README.md: contribution.json says sha256",
    lambda p: p.write("README.md", p.read("README.md") + b"!"),
)
quick("a config written anew", 7, "adapter_config.json: contribution.json says sha256", lambda p: p.config())
quick(
    "no README", 7, "contribution.json names README.md, which is missing", lambda p: (p.folder / "README.md").unlink()
)
quick(
    "a file that the record does not name",
    7,
    "contribution.json does not name README.md",
    lambda p: (
        p.record(files={k: v for k, v in json.loads(p.read(RECORD))["files"].items() if k != "README.md"}) or p.sign()
    ),
)
quick(
    "a file that climbs",
    7,
    "contribution.json names ../../x, which is missing",
    lambda p: p.record(files=json.loads(p.read(RECORD))["files"] | {"../../x": "0" * 64}) or p.sign(),
)
quick(
    "weights of another adapter",
    7,
    "contribution.json says adapter 000000000000…",
    lambda p: p.record(adapter="0" * 64),
)


@case("no record", 3, "has no contribution.json")
def _(place):
    (place.folder / RECORD).unlink()
    (place.folder / SIGNATURE).unlink()


quick(
    "a record of another format",
    3,
    "expected format 'fedmed/contribution', found 'fedmed/plan'",
    lambda p: p.record(format="fedmed/plan"),
)
quick("a record from the future", 3, "expected version 1, found 2", lambda p: p.record(version=2))
quick(
    "a version that is not a version",
    3,
    "expected fedmed_version to be a version",
    lambda p: p.record(fedmed_version="\x1b[31m"),
)
quick("a record with an unknown field", 3, "unknown field 'patients'", lambda p: p.record(patients=[]))
quick(
    "a record without its round",
    3,
    "missing field 'round'",
    lambda p: p.write(RECORD, json.dumps({k: v for k, v in json.loads(p.read(RECORD)).items() if k != "round"})),
)
quick("a round as text", 3, "round must be int, found str", lambda p: p.record(round="1"))
quick("fewer than no examples", 3, "num_examples must not be negative, found -1", lambda p: p.record(num_examples=-1))
quick("a number of thirty digits", 3, "num_tokens does not fit into 64 bits", lambda p: p.record(num_tokens=10**30))
quick(
    "a norm of four hundred digits", 3, "update_norm does not fit into 64 bits", lambda p: p.record(update_norm=10**400)
)
quick("a loss without end", 3, "losses[0] must be finite, found inf", lambda p: p.raw_record("2.5,", "1e999,"))
quick(
    "a loss that is not a number", 3, "contribution.json: NaN is not a number", lambda p: p.raw_record("2.5,", "NaN,")
)
quick("a loss below zero", 3, "losses[1] must not be negative, found -2.25", lambda p: p.raw_record("2.25,", "-2.25,"))
quick(
    "more losses than steps", 3, "losses must be at most max_steps (2) many, found 3", lambda p: p.record(max_steps=2)
)
quick("a site that climbs", 3, "site name '../../etc' must match", lambda p: p.record(site="../../etc"))
quick("a reserved site", 3, "site name 'global' is reserved", lambda p: p.record(site="global"))
quick(
    "a site of another federation", 4, "site Z is not in the plan (A, B, C)", lambda p: p.record(site="Z") or p.sign()
)
quick("another plan", 4, "is of another plan: expected", lambda p: p.record(plan="0" * 64))
quick("another base's weights", 4, "was trained on another base model", lambda p: p.record(base_fingerprint="0" * 64))
quick("a digest with a letter too many", 3, "parent must be 64 hexadecimal digits", lambda p: p.record(parent="g" * 64))
quick("another starting point", 7, "expected an adapter trained from", lambda p: p.record(parent="0" * 64) or p.sign())
quick(
    "a later round",
    7,
    "expected a contribution to round 1, found one to round 2",
    lambda p: p.record(round=2) or p.sign(),
)
quick("round zero", 3, "round must be from 1 to 999999, found 0", lambda p: p.record(round=0))
quick(
    "a claim of fewer bytes",
    7,
    "contribution.json says 1 adapter bytes, found",
    lambda p: p.record(adapter_bytes=1, reduction=round(1 - 1 / 4_000_000, 6)),
)
quick(
    "a claim of a larger base",
    7,
    "contribution.json says 9,000,000 base model bytes, the plan 4,000,000",
    lambda p: p.record(
        base_bytes=9_000_000, reduction=round(1 - json.loads(p.read(RECORD))["adapter_bytes"] / 9_000_000, 6)
    ),
)
quick("a reduction that is not true", 3, "reduction must be", lambda p: p.record(reduction=0.5))
quick(
    "an escape in the run object",
    3,
    "run.machine holds the control character U+001B",
    lambda p: p.record(run={"machine": "\x1b]0;x\x07"}),
)
quick(
    "text that turns around",
    3,
    "run.python holds the control character U+202E",
    lambda p: p.record(run={"python": "\u202e3.11"}),
)
quick(
    "a record of 2 MB",
    3,
    "contribution.json: expected at most 1,000,000 bytes, found",
    lambda p: p.write(RECORD, p.read(RECORD) + b" " * 2_000_000),
)
quick("both records", 4, "holds both contribution.json and aggregate.json", lambda p: _second_record(p))


def _second_record(place):
    from fedmed_cli.records.aggregate import Aggregate, Evidence, SiteDecision, Truncation

    record = json.loads(place.read(RECORD))
    evidence = Evidence(1, 1, None, 1.0, {}, (), None, None, None)
    decision = SiteDecision(record["adapter"], "0" * 64, "accepted", 1.0, 1.0, 1.0, None, evidence, ())
    second = Aggregate(
        round=1, plan=record["plan"], sites_digest=record["sites"], base_fingerprint=record["base_fingerprint"],
        parent=record["parent"], adapter=record["adapter"], method="svd", weights="tokens", robust="none",
        num_malicious=1, clip=None, server_lr=1.0, server_momentum=0.0, sites={"B": decision}, missing=(),
        excluded=(), examination=None, truncation=Truncation(0.0, {}), files=record["files"],
    )  # fmt: skip
    place.write("aggregate.json", second.to_bytes())


# --- signatures -------------------------------------------------------------------------------------


def _blob(place):
    lines = place.read(SIGNATURE).decode().split("\n")
    return base64.b64decode("".join(lines[1:-2]))


def _edit_blob(old, new):
    def change(place):
        blob = _blob(place)
        assert old in blob
        place.write(SIGNATURE, signatures.armor(blob.replace(old, new, 1)))

    return change


quick(
    "the signature is taken away",
    7,
    "is not signed, but the plan pins a key for site B",
    lambda p: (p.folder / SIGNATURE).unlink(),
)
quick("a stranger's key", 7, "the plan expects site B's key", lambda p: p.sign("stranger"))
quick("another site's key", 7, factories.SIGNERS["C"].fingerprint, lambda p: p.sign("C"))
quick(
    "another site's contribution",
    4,
    "site A appears in two folders",
    lambda p: [p.write(x.name, x.read_bytes()) for x in (p.root / "adapters/A").iterdir()],
)
quick(
    "an edited record",
    7,
    "contribution.json.sig: the signature does not hold for contribution.json",
    lambda p: p.record(num_tokens=100),
)
quick("a space in the record", 7, "the signature does not hold", lambda p: p.write(RECORD, p.read(RECORD) + b" "))
quick(
    "a signature for another purpose",
    3,
    "expected namespace 'fedmed', found 'a file'",
    _edit_blob(b"fedmed", b"a file"),
)
quick("another hash", 3, "expected hash 'sha512', found 'sha256'", _edit_blob(b"sha512", b"sha256"))
quick(
    "another kind of key",
    3,
    "expected a key of kind ssh-ed25519, found 'ssh-ed25518'",
    _edit_blob(b"ssh-ed25519", b"ssh-ed25518"),
)
quick(
    "a signature from the future",
    3,
    "expected signature version 1, found 9",
    _edit_blob(b"SSHSIG\0\0\0\1", b"SSHSIG\0\0\0\x09"),
)
quick("a signature without its magic", 3, "its magic is missing", _edit_blob(b"SSHSIG", b"SSHSIK"))
quick("a reserved field in use", 3, "uses a reserved field", _edit_blob(b"fedmed\0\0\0\0", b"fedmed\0\0\0\1x"))
quick(
    "a signature that is cut off",
    3,
    "contribution.json.sig: is cut off",
    lambda p: p.write(SIGNATURE, signatures.armor(_blob(p)[:-1])),
)
quick(
    "a signature with a tail",
    3,
    "has bytes after its end",
    lambda p: p.write(SIGNATURE, signatures.armor(_blob(p) + b"x")),
)
quick(
    "no signature in the file",
    3,
    "contribution.json.sig: is not an SSH signature",
    lambda p: p.write(SIGNATURE, b"trust me"),
)
quick(
    "a signature that is not base64",
    3,
    "contribution.json.sig: is not base64",
    lambda p: p.write(SIGNATURE, p.read(SIGNATURE).replace(b"U1NI", b"U1N\xe9", 1)),
)
quick(
    "a signature in other lines",
    3,
    "is not written as ssh-keygen writes signatures",
    lambda p: p.write(
        SIGNATURE, p.read(SIGNATURE).replace(b"BEGIN SSH SIGNATURE-----\n", b"BEGIN SSH SIGNATURE-----\n\n")
    ),
)
quick(
    "a long signature",
    3,
    "contribution.json.sig: expected at most 2,000 bytes",
    lambda p: p.write(SIGNATURE, p.read(SIGNATURE) + b"\n" * 3000),
)

# --- bundles ----------------------------------------------------------------------------------------


def _tar(add, kind="w:"):
    """A bundle as Python's tarfile makes it, with one more member."""

    def make(files):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=kind, format=tarfile.USTAR_FORMAT) as archive:
            for name, data in sorted(files.items()):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            add(archive)
        return out.getvalue()

    return lambda place: place.bundle(make)


def _member(name, data=b"", **attributes):
    def add(archive):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in attributes.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(data))

    return add


quick(
    "a bundle that climbs",
    3,
    "B.fedmed.tar: holds a name that is not a plain file name at byte",
    _tar(_member("../../x")),
)
quick(
    "a bundle with an absolute path",
    3,
    "holds a name that is not a plain file name at byte 9,",
    _tar(_member("/etc/passwd")),
)
quick(
    "a bundle with a link",
    3,
    "zlink is not a plain file as 'fedmed pack' writes it",
    _tar(_member("zlink", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
)
quick(
    "a bundle with a device",
    3,
    "zdevice is not a plain file as",
    _tar(_member("zdevice", type=tarfile.CHRTYPE, devmajor=1)),
)
quick("a bundle with a file for its owner", 3, "zset is not a plain file as", _tar(_member("zset", mode=0o4755)))
quick(
    "a bundle with a pickle",
    3,
    "B.fedmed.tar: holds 'z.pkl'; files that can carry code",
    lambda p: p.bundle(lambda f: bundles.pack(f | {"z.pkl": b"x"})),
)
quick(
    "a bundle with a file twice",
    3,
    "README.md is listed twice or out of order",
    lambda p: p.bundle(
        lambda f: bundles.pack({"README.md": b"x"})[:-1024] + bundles.pack(f)[bundles.pack(f).find(b"README.md") :]
    ),
)
quick(
    "a bundle that is cut off",
    3,
    "B.fedmed.tar: is truncated: contribution.json.sig needs",
    lambda p: p.bundle(lambda f: bundles.pack(f)[:-1500]),
)
quick(
    "a bundle with a tail",
    3,
    "expected 1024 zero bytes at its end, found others",
    lambda p: p.bundle(lambda f: bundles.pack(f) + b"x"),
)
quick(
    "a bundle that hides bytes",
    3,
    "hides bytes after contribution.json.sig",
    lambda p: p.bundle(lambda f: bundles.pack(f)[:-1025] + b"x" + bytes(1024)),
)
quick(
    "a compressed bundle",
    3,
    "holds a name that is not a plain file name at byte 0",
    lambda p: p.bundle(lambda f: gzip.compress(bundles.pack(f))),
)
quick("an empty bundle", 3, "it ends at byte 0 in the middle of a header", lambda p: p.bundle(lambda f: b""))
quick(
    "a bundle with a file of 8 GB",
    3,
    "adapter_config.json needs 8,589,934,591 bytes",
    lambda p: p.bundle(lambda f: bundles.header(CONFIG, 8**11 - 1) + bytes(2048)),
)


@case("a link to a bundle", 3, "B.fedmed.tar: is a link")
def _(place):
    place.bundle()
    bundle = place.root / "adapters/B.fedmed.tar"
    bundle.rename(place.root.parent / "elsewhere")
    bundle.symlink_to(place.root.parent / "elsewhere")


@case("a bundle of 1.57 GB", 3, "B.fedmed.tar: expected at most 8,019,200 bytes, found 1,570,000,000")
def _(place):
    place.bundle()
    os.truncate(place.root / "adapters/B.fedmed.tar", 1_570_000_000)  # takes no room on the disk


@case(
    "a bundle with weights that the plan cannot need",
    3,
    "safetensors: expected at most 1,001,792 bytes, found 1,100,000",
)
def _(place):
    place.bundle(lambda files: bundles.pack(files | {WEIGHTS: bytes(1_100_000)}))


quick(
    "a bundle of seventeen files",
    3,
    "holds more than 16 files",
    lambda p: p.bundle(lambda f: bundles.pack({f"{n:02d}": b"" for n in range(17)})),
)
quick(
    "a bundle that is a folder's name",
    3,
    "adapters/B.fedmed.tar: has no adapter_config.json",
    lambda p: (
        p.folder.rename(p.root / "adapters/B.fedmed.tar")
        and [x.unlink() for x in (p.root / "adapters/B.fedmed.tar").iterdir()]
    ),
)
quick(
    "a site name of 5,000 characters",
    3,
    f"contribution.json: site name '{'x' * 80}' must match",
    lambda p: p.record(site="x" * 5000),
)

# --- the plan ---------------------------------------------------------------------------------------

SEED = "seed = 7"
quick("a plan that is not TOML", 3, "federation.toml: is not TOML", lambda p: p.plan_text(SEED, "seed = = 7"))
quick(
    "a module of 5,000 characters",
    3,
    f"base.linear: 'model.layers.*.self_attn.q{'0' * 54}' is not a module name",
    lambda p: p.plan_text('q_proj" = [', f'q{"0" * 5000}" = ['),
)
quick(
    "a table of 5,000 characters that is listed twice",
    3,
    "federation.toml: is not TOML (Cannot declare ('xxx",
    lambda p: p.plan_text(SEED, SEED + f"\n[{'x' * 5000}]" * 2),
)
quick(
    "a key with half a million dots",
    3,
    "federation.toml: expected at most 200,000 bytes",
    lambda p: p.plan_text(SEED, "a." * 500_000 + "a = 1"),
)
quick(
    "a key with fifty thousand dots",
    3,
    "expected at most 500 dots in a line",
    lambda p: p.plan_text(SEED, "a." * 50_000 + "a = 1"),
)
quick(
    "a plan nested 50,000 deep",
    3,
    "federation.toml: nested too deep",
    lambda p: p.plan_text(SEED, "seed = " + "[" * 50_000 + "]" * 50_000),
)
quick(
    "a seed of five thousand digits",
    3,
    "federation.toml: a number has too many digits",
    lambda p: p.plan_text(SEED, "seed = " + "9" * 5000),
)
quick(
    "a seed in endless hexadecimal",
    3,
    "training.seed does not fit into 64 bits",
    lambda p: p.plan_text(SEED, "seed = 0x" + "f" * 50_000),
)
quick(
    "a version in endless hexadecimal",
    3,
    "expected version 1, found a number of more than 64 bits",
    lambda p: p.plan_text("version = 1", "version = 0x" + "f" * 50_000),
)
quick("a date for a seed", 3, "training.seed must be int, found date", lambda p: p.plan_text(SEED, "seed = 2026-01-01"))
quick(
    "a learning rate without end",
    3,
    "training.learning_rate must be finite, found inf",
    lambda p: p.plan_text("learning_rate = 0.0002", "learning_rate = inf"),
)
quick(
    "an escape in the prompt",
    3,
    "prompt.system holds the control character U+001B",
    lambda p: p.plan_text('system = "', 'system = "\\u001b[2J'),
)
quick("a site that leaves the folder", 3, "site name '../B' must match", lambda p: p.plan_text('"B"', '"../B"'))
quick("a site twice", 3, "appears twice (upper and lower case count as one)", lambda p: p.plan_text('"B"', '"a"'))
quick(
    "two sites with one key",
    3,
    "sites.keys: A and B have the same key",
    lambda p: p.plan_text(factories.SIGNERS["B"].public, factories.SIGNERS["A"].public),
)
quick(
    "a key that is not a key",
    3,
    "sites.keys.B must be 'ssh-ed25519 AAAA…'",
    lambda p: p.plan_text(factories.SIGNERS["B"].public, "ssh-rsa AAAA"),
)
quick(
    "a key for nobody",
    3,
    "sites.keys: 'Z' is neither a site nor coordinator",
    lambda p: p.plan_text('"B" = "ssh', '"Z" = "ssh'),
)
quick(
    "a base of a million modules",
    3,
    "base.linear names more than 20000 modules",
    lambda p: p.plan_text("[lora]", "\n".join(f'"x.{n}.*.q" = [8, 8, 1024]' for n in range(40)) + "\n[lora]"),
)
quick(
    "an adapter of a hundred gigabytes",
    3,
    "parameters, expected at most 2,147,483,648",
    lambda p: p.plan_text('q_proj" = [', 'q_proj" = [16777216, 16777216, 1024]\n"x.*" = ['),
)

# --- keys -------------------------------------------------------------------------------------------


def _trust(text):
    """Pin what a file holds as site B's key."""

    def argv(place):
        (place.root.parent / "key.pub").write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["keys", "trust", "B", str(place.root.parent / "key.pub"), "-C", str(place.root)]

    return argv


def _nothing(place):
    pass


GOOD = factories.SIGNERS["stranger"].public
quick(
    "a key that is another's",
    3,
    "sites.keys: A and B have the same key",
    _nothing,
    lambda p: [*_trust(factories.SIGNERS["A"].public)(p), "--replace"],
)
quick("a key in place of another", 6, "the plan pins the key", _nothing, _trust(GOOD))
quick(
    "a key of another kind",
    3,
    "is not a public key of kind ssh-ed25519 in one line",
    _nothing,
    _trust("ssh-rsa AAAAB3NzaC1yc2E="),
)
quick("a key that is not base64", 3, "key.pub: is not base64", _nothing, _trust("ssh-ed25519 AAAA*"))
quick("a key that is cut off", 3, "key.pub: is cut off", _nothing, _trust(GOOD[:40]))
quick(
    "two keys in one file",
    3,
    "key.pub: is not a public key of kind ssh-ed25519 in one",
    _nothing,
    _trust(f"{GOOD}\n{GOOD}\n"),
)
quick(
    "a private key instead",
    3,
    "key.pub: is not a public key of kind ssh-ed25519 in one line",
    _nothing,
    _trust("-----BEGIN OPENSSH PRIVATE KEY-----\n"),
)


def _sign_with(data, mode=0o600):
    def argv(place):
        path = place.root.parent / "id"
        path.write_bytes(data)
        path.chmod(mode)
        return ["aggregate", "-C", str(place.root), "--key", str(path)]

    return argv


def _private():
    from cryptography.hazmat.primitives import serialization as s

    return factories.SIGNERS["coordinator"].private.private_bytes(
        s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()
    )


quick(
    "a private key that all may read",
    3,
    "others may read this private key (mode 0644, expected 0600)",
    _nothing,
    _sign_with(_private(), 0o644),
)
quick("a private key that is none", 3, "is not a usable private key in OpenSSH's form", _nothing, _sign_with(b"secret"))
