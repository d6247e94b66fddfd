"""Write the tables of docs/results.md from the summaries that the benchmarks leave in docs/results/.

python docs/results_page.py     # rewrites the blocks between <!-- <name> --> and <!-- end -->
"""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "results.md"
MIN_SEEDS = 3  # rows with fewer training seeds stay in the summary alone


def rows_of(name: str) -> list[dict[str, Any]]:
    summary = json.loads((DOCS / "results" / name / "summary.json").read_text(encoding="utf-8"))
    return [row for row in summary["rows"] if len(row["seeds"]) >= MIN_SEEDS]


def differences_of(name: str) -> list[dict[str, Any]]:
    summary = json.loads((DOCS / "results" / name / "summary.json").read_text(encoding="utf-8"))
    return [row for row in summary["differences"] if len(row["successes"][0]) >= MIN_SEEDS]


def success_table(name: str) -> str:
    lines = ["| row | successes by training seed | positions | success [95 %] |", "|---|---|---|---|"]
    for row in rows_of(name):
        counts = ", ".join(str(seed["successes"]) for seed in row["seeds"])
        interval = f"{100 * row['mean']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        lines.append(f"| {row['name']} | {counts} | {row['seeds'][0]['episodes']} | {interval} |")
    return "\n".join(lines)


def difference_table(name: str) -> str:
    lines = ["| difference | points [95 %] | p |", "|---|---|---|"]
    for row in differences_of(name):
        p = "< 0.001" if row["p"] < 0.001 else f"{row['p']:.2g}"
        lines.append(
            f"| {row['name']} | {row['points']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}] | {p} |"
        )
    return "\n".join(lines)


BLOCKS = {
    "policies": lambda: success_table("policies"),
    "policies, differences": lambda: difference_table("policies"),
    "tasks": lambda: success_table("tasks"),
    "tasks, differences": lambda: difference_table("tasks"),
}


def page(text: str) -> str:
    """The page with every block written again."""
    for name, table in BLOCKS.items():
        block = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = block.sub(lambda found, table=table: f"{found[1]}\n{table()}\n\n{found[2]}", text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
