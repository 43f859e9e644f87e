"""Commands for many texts: demo, embed, generate, plan, node. Each has a module of its own."""

from __future__ import annotations

import sys
from typing import Annotated, Any, cast

import typer

from aiosollol.cli.access import reaches_nodes
from aiosollol.cli.base import Json, Model, Nodes, Policy, SameMachine, app, examples
from aiosollol.config.settings import DEFAULTS


@app.command(epilog=examples("aiosollol demo"))
def demo(as_json: Json = False) -> None:
    """Embed real text over three nodes, then search it by meaning.

    Needs no Ollama and no network: the nodes run a small model installed with the extra
    'embedded'. The text is Python's language reference. Takes a few seconds.
    """
    from aiosollol.cli.demo import run_demo

    raise typer.Exit(run_demo(as_json=as_json))


@app.command(
    epilog=examples(
        "aiosollol embed --embedded --out vectors.npy docs/*.txt",
        "cat book.txt | aiosollol embed --node 10.0.0.2 --node 10.0.0.3 > book.jsonl",
    )
)
@reaches_nodes
def embed(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...", help="UTF-8 text files or JSON Lines files. Default or -: stdin."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Default: nomic-embed-text, or wordllama with --embedded.", show_default=False
        ),
    ] = None,
    node: Nodes = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Output file: FILE.npy (float32, one row per passage) or FILE.jsonl. "
            "Default: JSON Lines on stdout.",
        ),
    ] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Use the built-in model; needs no Ollama.")
    ] = False,
    field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Read the input as JSON Lines and embed this field. Files named .jsonl or .ndjson "
            "are JSON Lines by default, with the field 'text'.",
        ),
    ] = None,
    passage_size: Annotated[
        int,
        typer.Option(min=0, help="Maximum characters per passage; 0 embeds each text whole."),
    ] = 800,
    policy: Policy = DEFAULTS.policy,
    same_machine: SameMachine = DEFAULTS.same_machine,
    on_truncate: Annotated[
        str,
        typer.Option(
            metavar="ignore|warn|raise",
            help="What to do about a passage that is longer than the model's context: let the "
            "server cut it and say how many it cut (warn) or not (ignore), or fail it (raise).",
        ),
    ] = "warn",
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write a timeline of the nodes as Chrome trace events: open it at ui.perfetto.dev "
            "or in chrome://tracing.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Cut texts into passages and embed them.

    Progress goes to stderr. Ctrl-C leaves a valid file with the vectors so far and prints how many
    are missing. --json prints a summary as JSON to stdout, or to stderr if the vectors go to
    stdout.
    """
    from aiosollol.cli.embed import EmbedOptions, embed_files

    options = EmbedOptions(
        files=files or (),
        model=model,
        nodes=node or (),
        out=out,
        embedded=embedded,
        field=field,
        passage_size=passage_size,
        policy=cast(Any, policy),  # checked there
        same_machine=cast(Any, same_machine),
        on_truncate=cast(Any, on_truncate),
        trace=trace,
        as_json=as_json,
    )
    raise typer.Exit(embed_files(options))


@app.command(
    epilog=examples(
        "aiosollol generate --model llama3.2 --prompts questions.jsonl --out answers.jsonl",
        "aiosollol generate --model llama3.2 --prompts questions.jsonl --out answers.jsonl "
        "--resume",
    )
)
@reaches_nodes
def generate(
    model: Model,
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="JSON Lines: objects with 'prompt', or with 'messages' for chats, or strings. "
            "Other fields are kept. Default or -: stdin.",
        ),
    ] = "-",
    node: Nodes = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Output file. Default: JSON Lines on stdout."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with --out: ask only what has no reply in it."),
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system prompt of all prompts.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer many prompts with a model, over all nodes that have it.

    Writes a line for each prompt, in order, as soon as its reply has come: its fields, 'line' and
    'response', or 'error'. What is in the file when the command ends is not asked again with
    --resume.
    """
    from aiosollol.cli.generate import GenerateOptions, generate_file

    options = GenerateOptions(
        model=model,
        prompts=prompts,
        nodes=node or (),
        out=out,
        resume=resume,
        system=system,
        as_json=as_json,
    )
    raise typer.Exit(generate_file(options))


@app.command(
    short_help="Show how batches would be spread over the nodes, and why.",
    epilog=examples(
        "aiosollol plan --model all-minilm --node 10.0.0.2 --node 10.0.0.3",
        "aiosollol plan --model all-minilm --node 10.0.0.2 --node 10.0.0.3 --sizes 1000,100000",
    ),
)
@reaches_nodes
def plan(
    model: Annotated[str, typer.Option(help="The embedding model.")] = "nomic-embed-text",
    node: Nodes = None,
    sizes: Annotated[
        str, typer.Option(metavar="N,N,...", help="Batch sizes, in items.")
    ] = "10,50,100,200",
    tokens_per_item: Annotated[
        float, typer.Option(min=1, help="Average tokens per item; 75 tokens are about 50 words.")
    ] = 75,
    policy: Policy = DEFAULTS.policy,
    same_machine: SameMachine = DEFAULTS.same_machine,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="Let each node embed 32 short texts first, to measure its speed.",
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Show how batches would be spread over the nodes, how long that takes, and why.

    None of your texts is embedded. "sequential" is the time on the best node alone, "parallel" the
    time on all eligible nodes, each with the share it can do in that time. A node that cannot be
    measured is left out and listed.
    """
    from aiosollol.cli.plan import PlanRequest, parse_sizes, show_plan

    request = PlanRequest(
        model=model,
        nodes=node or (),
        sizes=parse_sizes(sizes),
        tokens_per_item=tokens_per_item,
        policy=cast(Any, policy),  # checked there
        same_machine=cast(Any, same_machine),
        is_measured=measure,
        as_json=as_json,
    )
    raise typer.Exit(show_plan(request))


@app.command(epilog=examples("aiosollol node --port 21434"))
def node(
    port: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0 picks a free one."),
    ] = 21434,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
) -> None:
    """Serve a small embedding model behind Ollama's API.

    The model is called wordllama and is installed with aiosollol. Any client of Ollama's embedding
    API can use it. Ctrl-C or SIGTERM ends it, with exit code 0.
    """
    from aiosollol.cli.base import Screen, run
    from aiosollol.embedded import serve

    screen = Screen(sys.stdout)

    def tell(url: str) -> None:
        screen.line(f"The model wordllama is at {url}; Ctrl-C ends it.")

    with screen.log():
        run(serve(host, port, on_ready=tell))
