"""Prints the README's table from the JSON that ``dllm-gym compare`` wrote.

Run: ``python docs/results/summary.py docs/results/arithmetic-full.json``
"""

import json
import sys
from pathlib import Path


def main(path: str) -> None:
    """Prints one row per agent, learned ones last."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    print("| agent | accuracy (95 % interval) | steps | best heuristics there | difference (95 % interval) |")
    print("|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["learned"], row["label"])):
        low, high = row["accuracy_ci95"]
        cells = [row["label"], f"{row['accuracy']:.3f} ({low:.3f} to {high:.3f})", f"{row['nfe_mean']:.1f}"]
        if row["learned"]:
            low, high = row["envelope_gap_ci95"]
            cells += [
                f"{row['envelope_accuracy']:.3f}",
                f"{100 * row['envelope_gap']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            ]
        else:
            cells += ["", ""]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1])
