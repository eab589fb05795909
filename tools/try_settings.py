"""Compare settings of the methods by base-to-new on MiniWorld's development sets, never on the reported ones.

    python tools/try_settings.py cdc consistency_weight=1,4 --out results/development.json

Runs every combination on every development set and seed; a row that the file has already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from promptprism.backbones import load_backbone
from promptprism.data.miniworld import DEVELOPMENT, load
from promptprism.evaluation.base_to_new import base_to_new
from promptprism.files import write_text


def value(text: str) -> Any:
    """Read a setting's value: JSON where it is some, else a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main() -> None:
    """Run the grid and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE,VALUE", help="one axis of the grid each")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 1")
    parser.add_argument("--data", nargs="*", default=list(DEVELOPMENT))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    axes = {
        name: [value(v) for v in values.split(",")]
        for name, values in (s.split("=") for s in arguments.settings)
    }
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    backbone = load_backbone(precision=arguments.precision)
    for combination in itertools.product(*axes.values()):
        settings = dict(zip(axes, combination, strict=True))
        own = []
        for data, seed in itertools.product(arguments.data, range(1, arguments.seeds + 1)):
            key = {
                "method": arguments.method,
                "given": settings,
                "data": data,
                "seed": seed,
                "precision": arguments.precision,
                "fingerprint": backbone.fingerprint,
            }
            row = next((r for r in rows if key.items() <= r.items()), None)
            if row is None:
                result = base_to_new(arguments.method, backbone, load(data), seed=seed, **settings)
                row = key | {
                    "base": result.base.accuracy,
                    "new": result.new.accuracy,
                    "hm": result.hm,
                    "base_ece": result.base.metrics["cal/ece"],
                    "new_ece": result.new.metrics["cal/ece"],
                    "templates_new": result.new.template_accuracy,
                    "collapsed": result.training.collapsed,
                    "seconds": result.training.cost.seconds,
                    "settings": result.settings,
                }
                # Other processes may have added rows meanwhile.
                rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
                rows.append(row)
                write_text(arguments.out, json.dumps(rows, indent=1) + "\n")
            own.append(row)
        means = {
            k: statistics.mean(r[k] for r in own) for k in ("base", "new", "base_ece", "new_ece", "seconds")
        }
        hm = 2 * means["base"] * means["new"] / (means["base"] + means["new"])
        figures = " ".join(f"{k} {v:.3f}" for k, v in means.items())
        print(f"{arguments.method} {settings} hm {hm:.3f} {figures}", flush=True)


if __name__ == "__main__":
    main()
