"""`bnnconvert inspect`: what a model, a run or an artifact consists of."""

from typing import Annotated

import typer

from bnnconvert.cli import options


def inspect(
    target: Annotated[str, typer.Argument(metavar="MODEL|RUN|ARTIFACT", help="What to look into.")],
    model: options.Factory = None,
    input_shape: options.InputShape = None,
    html: options.Html = None,
    leaf: options.Leaf = None,
    concrete: options.Concrete = None,
    trust_pickle: options.TrustPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """List what a model, run or artifact consists of."""
    shape, steering = options.inputs_of(input_shape), options.steering_of(leaf, concrete)
    from bnnconvert import pipeline
    from bnnconvert.cli import render

    look = pipeline.look_at(target, model=model, trust_pickle=trust_pickle, input_shape=shape, steering=steering)
    if html is not None:
        render.page(pipeline.page_of_target(look), html)
    found = pipeline.inspect(look)
    if as_json:
        render.as_json(list(found.layers))
        return
    from bnnconvert.report.inspection import inspection_notes, inspection_table

    render.table(inspection_table(found))
    render.lines(inspection_notes(found))
