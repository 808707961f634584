"""The frame of every page: one look, in one file that needs no network. What comes from data is escaped."""

from pathlib import Path

import jinja2

from scrimp_platform.report import formatting


def environment() -> jinja2.Environment:
    """Return the environment in which the templates of this folder are rendered."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    made.filters.update(number=formatting.number, count=formatting.count, duration=formatting.duration)
    return made
