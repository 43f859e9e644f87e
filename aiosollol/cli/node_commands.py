"""The commands nodes, stats, route, verify and warm. Each is implemented in another module."""

from __future__ import annotations

from typing import Annotated

import typer

from aiosollol.cli.access import reaches_nodes
from aiosollol.cli.base import Json, Model, Nodes, app, examples


@app.command(
    epilog=examples(
        "aiosollol nodes --node 10.0.0.2 --node http://10.0.0.3:11434", "aiosollol nodes --json"
    )
)
@reaches_nodes
def nodes(node: Nodes = None, as_json: Json = False) -> None:
    """Show which nodes answer and which models they have.

    The exit code is 1 if a node does not answer.
    """
    from aiosollol.cli.nodes import show_nodes

    raise typer.Exit(show_nodes(node or (), as_json=as_json))


@app.command(
    short_help="Show health, load and request counts of the nodes.",
    epilog=examples("aiosollol stats --node 10.0.0.2 --node 10.0.0.3 --model all-minilm"),
)
@reaches_nodes
def stats(
    node: Nodes = None,
    model: Annotated[
        str | None,
        typer.Option(help="Let each node with this embedding model embed 32 short texts first."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show for each node: health, GPU or CPU, requests, errors, average response, in flight.

    The exit code is 1 if a node does not answer or cannot be measured.
    """
    from aiosollol.cli.nodes import show_stats

    raise typer.Exit(show_stats(node or (), model, as_json=as_json))


@app.command(
    epilog=examples(
        "aiosollol route --model all-minilm --node 10.0.0.2 --node 10.0.0.3",
        "aiosollol route --model llama3.2 --kind chat --strategy score",
    )
)
@reaches_nodes
def route(
    model: Model,
    node: Nodes = None,
    kind: Annotated[
        str, typer.Option(metavar="[embed|chat|generate]", help="Kind of request.")
    ] = "embed",
    tokens: Annotated[
        float,
        typer.Option(
            metavar="N", min=0, help="Length of the prompt in tokens; 75 are about 50 words."
        ),
    ] = 75,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="performance, score, round_robin, priority, least_loaded or random. "
            "Default: the setting routing_strategy, which is performance unless set.",
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="With --kind embed, let each node embed 32 short texts first, to measure its "
            "speed.",
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Show which node a single request would go to now, and why.

    Lists each node with the terms of the decision, or why it is not eligible. The request itself
    is not sent. The exit code is 1 if no node is eligible.
    """
    from aiosollol.cli.plan import RouteOptions, show_route

    options = RouteOptions(
        model=model,
        nodes=node or (),
        kind=kind,
        tokens=tokens,
        strategy=strategy,
        is_measured=measure,
        as_json=as_json,
    )
    raise typer.Exit(show_route(options))


@app.command(epilog=examples("aiosollol verify --model all-minilm --node 10.0.0.2 --node 10.0.0.3"))
@reaches_nodes
def verify(model: Model, node: Nodes = None, as_json: Json = False) -> None:
    """Check that all nodes give the same vectors for the same texts.

    Each node that has the embedding model embeds four short texts, alone and in a list. The exit
    code is 1 if the vectors of a node differ or a node returns none.
    """
    from aiosollol.cli.nodes import show_agreement

    raise typer.Exit(show_agreement(node or (), model, as_json=as_json))


@app.command(epilog=examples("aiosollol warm --model llama3.2 --node 10.0.0.2 --node 10.0.0.3"))
@reaches_nodes
def warm(model: Model, node: Nodes = None, as_json: Json = False) -> None:
    """Load a model into memory on every node that has it.

    The first request then need not wait for the model load. The server decides how long the model
    stays loaded (OLLAMA_KEEP_ALIVE, 5 minutes unless set). The exit code is 1 if a node fails.
    """
    from aiosollol.cli.nodes import warm_nodes

    raise typer.Exit(warm_nodes(node or (), model, as_json=as_json))
