"""Add pages from outside docs/ to the site: README first, the examples, and a reference page per package."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
TOP = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
# Packages with a Python API, in the order of the reference.
PACKAGES = (
    "s2", "encoders", "backbones", "policies", "loading", "training", "demos", "envs", "evaluation", "comparison.paired",
    "serving.remote", "envs.real.arms.driver", "envs.real.cameras", "envs.real.control", "probing", "pretraining",
)  # fmt: skip


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference pages to the navigation."""
    for section in config.nav or []:
        for entry in next(iter(section.values())) if isinstance(section, dict) else []:
            if isinstance(entry, dict) and entry.get("Reference") == "reference/":
                entry["Reference"] = [{f"s2robot.{name}": f"reference/{name}.md"} for name in PACKAGES]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    made = {uri: (ROOT / name).read_text(encoding="utf-8") for uri, name in TOP.items()}
    made["examples.md"] = (ROOT / "examples/README.md").read_text(encoding="utf-8") + "".join(
        f"\n## {file.name}\n\n```python\n{file.read_text(encoding='utf-8')}```\n"
        for file in sorted((ROOT / "examples").glob("*.py"))
    )
    made |= {f"reference/{name}.md": _reference(name) for name in PACKAGES}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def _reference(package: str) -> str:
    """Return a page with all public modules of a package, without those of packages inside it."""
    path = ROOT / "s2robot" / package.replace(".", "/")
    modules = sorted(file.stem for file in path.glob("*.py") if not file.stem.startswith("_"))
    names = [f"s2robot.{package}", *(f"s2robot.{package}.{module}" for module in modules)]
    return f"# s2robot.{package}\n\n" + "\n".join(f"::: {name}\n" for name in names)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep links to pages, and replace links to code by their text."""
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
