"""The stages in order, and the Python API. Only this package imports all stages."""

from bnnconvert.pipeline.bench import bench
from bnnconvert.pipeline.budget import convert_within, parse_budget
from bnnconvert.pipeline.compare import compare
from bnnconvert.pipeline.convert import convert, convert_model, open_run
from bnnconvert.pipeline.evaluate import evaluate
from bnnconvert.pipeline.export import export
from bnnconvert.pipeline.finetune import finetune
from bnnconvert.pipeline.inspect import inspect
from bnnconvert.pipeline.look import look_at
from bnnconvert.pipeline.page import page_of_student, page_of_target
from bnnconvert.pipeline.recipe_check import check_recipe, unpackable
from bnnconvert.pipeline.sensitivity import sensitivity
from bnnconvert.pipeline.student import Student
from bnnconvert.pipeline.verify import verify

__all__ = [
    "Student",
    "bench",
    "check_recipe",
    "compare",
    "convert",
    "convert_model",
    "convert_within",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "look_at",
    "open_run",
    "page_of_student",
    "page_of_target",
    "parse_budget",
    "sensitivity",
    "unpackable",
    "verify",
]
