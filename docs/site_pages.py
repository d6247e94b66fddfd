"""What `mkdocs` is told about pages that do not lie in docs/: README first, the examples, a reference page a wing."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
TOP = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
# Wings whose public names people call from Python, in the order of the floor plan; the rest are verbs' rooms.
WINGS = (
    "s2", "encoders", "backbones", "policies", "loading", "training", "demos", "envs", "evaluation", "comparison.paired",
    "serving.remote", "envs.real.arms.driver", "envs.real.cameras", "envs.real.control", "probing", "pretraining",
)  # fmt: skip


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the reference pages into the navigation."""
    for section in config.nav or []:
        for entry in next(iter(section.values())) if isinstance(section, dict) else []:
            if isinstance(entry, dict) and entry.get("Reference") == "reference/":
                entry["Reference"] = [{f"s2robot.{wing}": f"reference/{wing}.md"} for wing in WINGS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {uri: (ROOT / name).read_text(encoding="utf-8") for uri, name in TOP.items()}
    made["examples.md"] = (ROOT / "examples/README.md").read_text(encoding="utf-8") + "".join(
        f"\n## {file.name}\n\n```python\n{file.read_text(encoding='utf-8')}```\n"
        for file in sorted((ROOT / "examples").glob("*.py"))
    )
    made |= {f"reference/{wing}.md": _reference(wing) for wing in WINGS}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def _reference(wing: str) -> str:
    """A page with every public room of a wing, without those of wings in it that have a page of their own."""
    path = ROOT / "s2robot" / wing.replace(".", "/")
    rooms = (
        sorted(file.stem for file in path.glob("*.py") if not file.stem.startswith("_"))
        if path.is_dir()
        else []
    )
    names = (
        [f"s2robot.{wing}", *(f"s2robot.{wing}.{room}" for room in rooms)]
        if rooms or path.is_dir()
        else [f"s2robot.{wing}"]
    )
    return f"# s2robot.{wing}\n\n" + "\n".join(f"::: {name}\n" for name in names)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links inside the repository: those to pages stay, those to code become its name."""
    uri = page.file.src_uri
    top = ROOT / "examples" if uri == "examples.md" else ROOT if uri in TOP else (ROOT / "docs" / uri).parent
    pages = {ROOT / name: ROOT / "docs" / made for made, name in TOP.items()}
    pages |= {ROOT / "examples": ROOT / "docs/examples.md"}

    def link(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        if "://" in target or not target:
            return match[0]
        place = (top / target).resolve()
        place = pages.get(place, place / "README.md" if (place / "README.md").exists() else place)
        if not place.is_relative_to(ROOT / "docs") or place.is_dir():
            return text
        up = "../" * (len(Path(uri).parts) - 1)
        return f"{picture}[{text}]({up}{place.relative_to(ROOT / 'docs').as_posix()}{anchor or ''})"

    return re.sub(r"(!?)\[([^\[\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, markdown)
