"""What the make_*.py scripts beside this file share: where inputs lie, and how numbers are written.

Numbers: a float32 is written in the fewest digits that read back as the same float32; a float64 as Python's repr, which
reads back exactly. So a file holds the very values that were computed, and a reader should parse to f64 and round to
f32 where the note of a field says f32.
"""
import json
import math
import sys
from pathlib import Path

import numpy
import torch

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[3].parent / "shared"


def versions(*modules):
    """The versions a file was made with, for its header."""
    return {"python": sys.version.split()[0], "torch": torch.__version__, **{m.__name__: m.__version__ for m in modules}}


def plain(x):
    """Tensors, numpy values and containers of them as JSON values. A number JSON cannot hold becomes a string."""
    if isinstance(x, torch.Tensor):
        return plain(x.detach().cpu().numpy())
    if isinstance(x, numpy.ndarray):
        return plain(list(x)) if x.ndim else plain(x[()])
    if isinstance(x, dict):
        return {str(k): plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if isinstance(x, (numpy.bool_, bool)):
        return bool(x)
    if isinstance(x, numpy.integer):
        return int(x)
    if isinstance(x, (float, numpy.floating)):
        if not math.isfinite(x):
            return str(float(x))
        return float(str(x)) if isinstance(x, numpy.float32) else float(x)
    return x


def is_flat(x):
    return not isinstance(x, (list, dict)) or (isinstance(x, list) and not any(isinstance(v, (list, dict)) for v in x))


def layout(x, depth=0):
    """JSON with one key a line and one row of numbers a line: small, and a change shows as a readable diff."""
    pad, end = " " * (depth + 1), " " * depth
    if is_flat(x):
        return json.dumps(x, ensure_ascii=False, allow_nan=False)
    if isinstance(x, dict):
        body = (f"{pad}{json.dumps(k)}: {layout(v, depth + 1)}" for k, v in x.items())
        return "{\n" + ",\n".join(body) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + layout(v, depth + 1) for v in x) + f"\n{end}]"


def write_json(name, value):
    path = HERE / name
    path.write_text(layout(plain(value)) + "\n")
    print(f"{path.name}: {path.stat().st_size / 1024:.1f} KiB")
