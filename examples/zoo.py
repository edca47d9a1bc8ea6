"""Convert every model of torchvision and one of each timm family, and say what became of each.

python examples/zoo.py --out DIR [--only PATTERN] [--preload MODULE] [--table]
python examples/zoo.py --speed NAME ... [--preload MODULE]

Each model has a process of its own and a line in DIR/zoo.jsonl, so that a run that is stopped goes on where it was;
--only takes a shell pattern of names, --table prints the lines so far as a table. Weights are random. --preload imports
a module first, for installations in which torchvision does not import by itself. timm's families are its model files;
of each comes the smallest model, which is looked for once and kept in DIR/families.json.

--speed takes the time of models such as torchvision:resnet50 instead, one image on one thread, as they are in torch and
with `xnor` in a session; the least of several turns each.
"""

import argparse
import fnmatch
import gc
import importlib
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import bnnconvert
from bnnconvert.errors import BnnError, RefusalError
from bnnconvert.exporters.boundary import differing
from bnnconvert.exporters.verify import verify
from bnnconvert.graph import inner_graphs, inputs_inside
from bnnconvert.report.table import Column, Table, number
from bnnconvert.tasks.boxes import suppress

RECIPES = ("xnor", "bwn")
SAMPLES = 2
LIMIT = 1800
"""Seconds for one model."""
MEMORY = 16 * 2**30
"""Bytes for one model; the summary leaves out those that need more."""
TOO_LARGE = "needs more than 16 GB"
CLOSE = 1e-3
TURNS = 7
SIDE, REGIONS = 256, 100
"""Pixels of the images that detectors get, and regions that those look at which choose some."""
VIDEO = {"mvit": (3, 16, 224, 224), "s3d": (3, 16, 224, 224), "swin3d": (3, 16, 112, 112), "": (3, 16, 112, 112)}
"""Input shapes of video models by the beginnings of their names."""


def torchvision_names() -> Iterator[str]:
    """Names of all float models, each behind `torchvision:`."""
    import torchvision

    for name in torchvision.models.list_models():
        if not name.startswith("quantized_"):
            yield f"torchvision:{name}"


def timm_families(kept: Path) -> dict[str, str]:
    """Of each of timm's model files the model with the fewest parameters."""
    import timm

    if kept.exists():
        return dict(json.loads(kept.read_text("utf-8")))
    found: dict[str, str] = {}
    for family in timm.list_modules():
        sizes = {name: size for name in timm.list_models(module=family) if (size := _parameters(name)) is not None}
        if sizes:
            found[family] = min(sizes, key=sizes.__getitem__)
    kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def _parameters(name: str) -> int | None:
    import timm

    try:
        with torch.device("meta"):
            return sum(int(p.numel()) for p in timm.create_model(name).parameters())
    except Exception:  # a model that needs more than a name
        return None


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model in evaluation mode, and an input for it."""
    source, _, model = name.partition(":")
    torch.manual_seed(0)
    return _torchvision(model) if source == "torchvision" else _timm(model)


def _torchvision(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    kind = builder.__module__.split(".")[2]
    given = {"weights_backbone": None} if kind in ("detection", "segmentation") else {}
    net = builder(weights=None, **given).eval()
    if kind == "detection":
        # 800 pixels, to which each image is brought, and 1,000 regions in it would be ten times the work each.
        net.transform.min_size = (SIDE,)
        if hasattr(net, "rpn"):
            net.rpn._post_nms_top_n = dict.fromkeys(net.rpn._post_nms_top_n, REGIONS)
        _let_nms_run()
    if kind == "video":
        shape = next(size for start, size in VIDEO.items() if name.startswith(start))
        return net, (torch.rand(SAMPLES, *shape),)
    if kind == "optical_flow":
        return net, tuple(torch.rand(SAMPLES, 3, 128, 128) * 2 - 1 for _ in range(2))
    side = {"inception_v3": 299, "detection": SIDE}.get(name if name == "inception_v3" else kind, 224)
    return net, (torch.rand(SAMPLES, 3, side, side),)


def _timm(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import timm

    net = timm.create_model(name).eval()
    return net, (torch.randn(SAMPLES, *net.pretrained_cfg["input_size"]),)


def _let_nms_run() -> None:
    """Non-maximum suppression in Python, where torchvision's own operator is not installed."""
    from torchvision import extension
    from torchvision.ops import boxes

    if extension._has_ops():
        return

    def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        return suppress(dets, scores, torch.zeros(len(dets)), limit=iou_threshold)

    torch.library.impl("torchvision::nms", "CPU", nms)
    boxes._assert_has_ops = lambda: None


def try_model(name: str) -> dict[str, Any]:
    """What became of one model, with each recipe."""
    imported = time.process_time()
    start = time.perf_counter()
    net, inputs = build(name)
    built = time.perf_counter() - start
    start = time.perf_counter()
    with torch.no_grad():
        net(*inputs)
    row: dict[str, Any] = {
        "name": name,
        "parameters": sum(p.numel() for p in net.parameters()),
        "import_s": imported,
        "build_s": built,
        "forward_s": time.perf_counter() - start,
    }
    for recipe in RECIPES:
        row[recipe] = _try_recipe(net, inputs, recipe)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def _try_recipe(net: nn.Module, inputs: tuple[Tensor, ...], recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    gc.collect()  # the student of the recipe before
    try:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        student = bnnconvert.convert(net, recipe, example_inputs=inputs)
        found["convert_s"] = time.perf_counter() - start
        found["more_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        found["rung"] = student.teacher.meta["rung"]
        found["layers"] = Counter(layer.decision for layer in student.plan.layers)
        floats = [layer for layer in student.plan.layers if layer.decision == "float"]
        found["reasons"] = Counter(layer.reason.partition(":")[0] for layer in floats)
        found["notes"] = student.notes
        found["backward"] = _backward(student.model, inputs)
        found |= _exported(student, inputs)
    except RefusalError as error:
        found["refusal" if "convert_s" in found else "refused"] = str(error)
    except BnnError as error:
        found["failure"] = f"{type(error).__name__}: {error}"
    except Exception as error:
        found["failure"] = TOO_LARGE if _is_memory(error) else f"{type(error).__name__}: {error}"
        found["traceback"] = traceback.format_exc()
    return found


def _is_memory(error: Exception) -> bool:
    said = ("can't allocate memory", "could not create a primitive")  # the second is what oneDNN makes of it
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _backward(student: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether gradients reach the student's parameters."""
    student.train()
    outputs = [t for t in _tensors(student(*inputs)) if t.requires_grad]
    sum(t.float().square().mean() for t in outputs).backward()
    student.eval()
    return any(p.grad is not None for p in student.parameters())


def _exported(student: bnnconvert.Student, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Bytes, and what a session computes against the student.

    A model with code in it that no file can hold is exported part by part.
    """
    wholes: dict[str | None, tuple[GraphModule, tuple[Tensor, ...]]] = {None: (student.model, inputs)}
    if student.model.meta.get("opaque"):
        given = inputs_inside(student.model, inputs)
        wholes = {path: (part, given[path]) for path, part in inner_graphs(student.model) if path in given}
    found: dict[str, Any] = {"parts": len(wholes), "export_s": 0.0, "bytes": 0}
    found |= {"samples": 0, "restless": 0, "uncompared": 0, "apart_portable": 0}
    differences, apart, unexplained = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for path, (graph, x) in wholes.items():
            file = Path(folder) / "net.packed.safetensors"
            start = time.perf_counter()
            bnnconvert.export(student, file, part=path)
            found["export_s"] += time.perf_counter() - start
            found["bytes"] += file.stat().st_size
            session = bnnconvert.Session(file)
            if not len(x[0]):  # nothing got there
                x = tuple(map(torch.from_numpy, session.artifact.golden_inputs))
            compared = verify(graph, session, [x])
            found["apart_portable"] += compared.differing_samples
            apart_here = compared.differing_samples + compared.engine_differing
            apart, unexplained = (
                apart + apart_here,
                unexplained + compared.unexplained_samples + compared.engine_unexplained,
            )
            if not apart_here:
                differences.append(_difference(graph, session, x))
            restless = _restless(graph, x)
            found["samples"] += len(x[0])
            found["uncompared" if restless is None else "restless"] += len(x[0]) if restless is None else restless
    return found | {"difference": max(differences, default=0.0), "apart": apart, "unexplained": unexplained}


def _restless(student: nn.Module, inputs: tuple[Tensor, ...]) -> int | None:
    """Samples on which a student in float32 differs from the same student in float64; None where it has none.

    What a session differs by more than that is its own doing, the rest is what float32 makes of such a network.
    """
    with torch.no_grad():
        ours = [t.numpy() for t in _tensors(student(*inputs))]
        try:
            exact = _tensors(student.double()(*(x.double() if x.is_floating_point() else x for x in inputs)))
        except (RuntimeError, MemoryError):  # code that asks for float32, or no room
            return None
        finally:
            student.float()  # which gives the same weights again
    differs, _ = differing(ours, [t.numpy() for t in exact])
    return int(differs.sum())


def _difference(student: nn.Module, session: bnnconvert.Session, inputs: tuple[Tensor, ...]) -> float:
    """Largest difference, relative to the largest output."""
    with torch.no_grad():
        expected = _tensors(student(*inputs))
    actual = [torch.as_tensor(a) for a in _tensors(session.run(*(x.numpy() for x in inputs)))]
    pairs = zip(expected, actual, strict=True)
    return max(float((e - a).abs().max() / e.abs().max().clamp(min=1e-12)) for e, a in pairs if e.numel())


def _tensors(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [t for part in tree for t in _tensors(part)] if isinstance(tree, list | tuple) else [tree]


def run_all(names: list[str], out: Path, preload: str | None) -> None:
    """Try each model that has no line yet, in a process of its own."""
    lines = out / "zoo.jsonl"
    known = {row["name"] for row in rows_of(lines)}
    waiting = [name for name in names if name not in known]
    for done, name in enumerate(waiting, start=1):
        command = [sys.executable, __file__, "--one", name, *(["--preload", preload] if preload else [])]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
            row = json.loads(result.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            row = {"name": name, "failure": f"not done after {LIMIT} s"}
        except (IndexError, ValueError):
            row = {"name": name, "failure": f"the process ended: {result.stderr.strip().splitlines()[-1:]}"}
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{done} of {len(waiting)}  {name}  {_verdict(row)}", flush=True)


def rows_of(lines: Path) -> list[dict[str, Any]]:
    """The lines written so far."""
    return [json.loads(line) for line in lines.read_text("utf-8").splitlines()] if lines.exists() else []


def _verdict(row: dict[str, Any]) -> str:
    if "failure" in row:
        return str(row["failure"])
    return "; ".join(f"{recipe} {_outcome(row[recipe])}" for recipe in RECIPES)


def _outcome(found: dict[str, Any]) -> str:
    if "difference" in found:
        if _is_at_threshold(found):
            return "a value at a threshold"
        return f"{found['difference']:.0e}" if found["difference"] > 0 else "0"
    return str(found.get("failure") or found.get("refused") or found["refusal"])


def _is_at_threshold(found: dict[str, Any]) -> bool:
    """Whether a difference comes of values within rounding of a sign's threshold alone."""
    return bool(found["apart"] and not found["unexplained"])


def speed_of(name: str) -> tuple[str, ...]:
    """Milliseconds of a float model and of its session, their ratio, and nodes that run outside the engine."""
    torch.set_num_threads(1)
    net, given = build(name)
    inputs = tuple(x[:1] for x in given)
    student = bnnconvert.convert(net, RECIPES[0], example_inputs=inputs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.packed.safetensors"
        bnnconvert.export(student, file)
        session = bnnconvert.Session(file, threads=1)
    arrays = [x.numpy() for x in inputs]
    float_s, ours_s = math.inf, math.inf
    with torch.no_grad():
        for _ in range(TURNS):
            float_s = min(float_s, _seconds(lambda: net(*inputs)))
            ours_s = min(ours_s, _seconds(lambda: session.run(*arrays)))
    places = [session.executor.place(number) for number in range(len(session.program.nodes))]
    outside = sum(place != "engine" for place in places)
    times = (f"{1000 * float_s:.1f}", f"{1000 * ours_s:.1f}", f"{float_s / ours_s:.2f}")
    return name, *times, f"{outside} of {len(places)}"


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table_of(rows: list[dict[str, Any]]) -> Table:
    """One line per model and recipe."""
    numbers = ("binary", "float", "convert s", "bytes", "difference")
    columns = (Column("model"), Column("recipe"), Column("rung"), *map(number, numbers))
    cells = []
    for row in rows:
        for recipe in RECIPES:
            found = row.get(recipe, row)
            layers = found.get("layers", {})
            binary = sum(count for decision, count in layers.items() if decision != "float")
            cells.append(
                (row["name"], recipe, found.get("rung", ""), str(binary), str(layers.get("float", 0)),
                 f"{found['convert_s']:.1f}" if "convert_s" in found else "",
                 f"{found['bytes']:,}" if "bytes" in found else "", _outcome(found))
            )  # fmt: skip
    return Table("Zoo", columns, tuple(cells))


def summary_of(rows: list[dict[str, Any]]) -> list[str]:
    """Shares over all models and recipes."""
    large = {row["name"] for row in rows if any(row.get(r, row).get("failure") == TOO_LARGE for r in RECIPES)}
    rows = [row for row in rows if row["name"] not in large]
    found = [row.get(recipe, row) for row in rows for recipe in RECIPES]
    converted = [f for f in found if "convert_s" in f]
    exported = [f for f in converted if "difference" in f]
    agreeing = [f for f in exported if f["difference"] <= CLOSE and not f["apart"]]
    at_threshold = [f for f in exported if _is_at_threshold(f)]
    quick = [r for r in rows for f in (r.get(recipe, {}) for recipe in RECIPES)
             if "convert_s" in f and f["convert_s"] <= 2 * (r["import_s"] + r["build_s"]) + r["forward_s"]]  # fmt: skip
    accounted = [f for f in converted if all(f["reasons"])]
    reasons: Counter[str] = sum((Counter(f["reasons"]) for f in converted), Counter())
    agree = f"{len(agreeing) / len(found):.1%} export and agree with the student to {CLOSE:g}"
    flips = f"{len(at_threshold) / len(found):.1%} but for samples with a value within rounding of a sign's threshold"
    layers: Counter[str] = sum((Counter(f["layers"]) for f in converted), Counter())
    counted = ("samples", "apart", "restless", "uncompared")
    samples, apart, restless, uncompared = (sum(f[key] for f in exported) for key in counted)
    compared = [f for f in exported if not f["uncompared"]]
    steady = sum(not f["restless"] for f in compared) / max(1, len(compared))
    parts = f"{sum(f['parts'] > 1 for f in exported) / len(found):.1%} are exported in parts"
    return [
        f"{len(rows)} models with {len(RECIPES)} recipes each; {len(large)} more need more than 16 GB.",
        f"{len(converted) / len(found):.1%} convert, {sum('failure' in f for f in found)} end in an error.",
        f"{layers.total():,} layers, {layers.total() - layers['float']:,} binary.",
        f"{len(accounted) / len(found):.1%} have every layer binary or float for a reason:",
        *(f"    {count:,} layers: {reason}" for reason, count in reasons.most_common()),
        f"{agree}, {flips}; {parts}.",
        f"{samples:,} samples: the file differs from the student in {apart:,}, the student in float64 in {restless:,}",
        f"    (in {uncompared:,} there is no such student); these two agree in {steady:.1%} of the conversions.",
        f"{len(quick) / len(found):.1%} convert within three times the construction plus one forward pass,",
        "    the start of the process counted with the construction and with the conversion.",
        f"Rungs: {dict(Counter(f['rung'] for f in converted))}.",
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("zoo"), help="folder for the lines")
    parser.add_argument("--only", default="*", help="shell pattern of names, for example 'torchvision:res*'")
    parser.add_argument("--preload", metavar="MODULE", help="imported first")
    parser.add_argument("--table", action="store_true", help="print the lines so far")
    parser.add_argument("--speed", nargs="+", metavar="NAME", help="time these models instead")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.preload:
        importlib.import_module(given.preload)
    if given.speed:
        columns = (Column("model"), *map(number, ("torch ms", "session ms", "ratio", "nodes outside the engine")))
        print(Table("Speed", columns, tuple(map(speed_of, given.speed))).markdown())
        return
    if given.one:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        try:
            row = try_model(given.one)
        except Exception as error:
            if not _is_memory(error):
                raise
            row = {"name": given.one, "failure": TOO_LARGE}
        print(json.dumps(row))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.table:
        families = timm_families(given.out / "families.json")
        names = [*torchvision_names(), *(f"timm:{model}" for model in families.values())]
        run_all([name for name in names if fnmatch.fnmatch(name, given.only)], given.out, given.preload)
    rows = rows_of(given.out / "zoo.jsonl")
    print(table_of(rows).markdown(), *summary_of(rows), sep="\n")


if __name__ == "__main__":
    main()
