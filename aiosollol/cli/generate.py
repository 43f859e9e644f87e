"""`aiosollol generate`: answers the prompts of a JSON Lines file, over all nodes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import orjson

from aiosollol import OllamaPool
from aiosollol.cli.base import Screen, run, write_json
from aiosollol.cli.embed_files import STDIN, Replacing
from aiosollol.cli.measure import registry_of
from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.core.report import ReplyReport
from aiosollol.errors import InvalidInput, SollolError
from aiosollol.live.streaming import token_counts

ERRORS_SHOWN = 3
_OWN_FIELDS = ("line", "response", "error", "prompt_tokens", "reply_tokens")


class Prompt(NamedTuple):
    """One line of the input. fields: its other fields, which are kept."""

    line: int
    given: str | Sequence[Any]
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Options of `aiosollol generate`. Raises InvalidInput if two options conflict."""

    model: str
    prompts: str = STDIN
    nodes: Sequence[str] = ()
    out: str | None = None
    resume: bool = False
    system: str | None = None
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.out is None:
            raise InvalidInput("--resume needs --out, the file to go on with")


def generate_file(options: GenerateOptions) -> int:
    """Answer the prompts of a file and return the exit code: 1 if one has no reply."""
    prompts = list(read_prompts(options.prompts, sys.stdin.buffer))
    done = _answered(options)
    left = [each for each in prompts if each.line not in done]
    is_stdout = options.out is None
    with open(options.out or sys.stdout.fileno(), "ab", closefd=not is_stdout) as out:
        job = GenerateJob(options, left, len(done), out)
        try:
            run(job.work())
        finally:
            job.finish()
    return int(job.missing > 0)


def read_prompts(name: str, stdin: BinaryIO) -> Iterator[Prompt]:
    """The prompts of a JSON Lines file. Raises InvalidInput that names the line."""
    shown = "stdin" if name == STDIN else name
    try:
        data = stdin.read() if name == STDIN else Path(name).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{shown}: {error.strerror}") from error
    kinds = set()
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"{shown}, line {number}: is not JSON ({error})") from error
        fields = {"prompt": value} if isinstance(value, str) else value
        if not isinstance(fields, dict):
            raise InvalidInput(f"{shown}, line {number}: must be an object or a string")
        given = fields.get("messages", fields.get("prompt"))
        if not isinstance(given, list if "messages" in fields else str):
            raise InvalidInput(
                f"{shown}, line {number}: needs 'prompt', a string, or 'messages', a list"
            )
        kinds.add(type(given))
        if len(kinds) > 1:
            raise InvalidInput(f"{shown}, line {number}: prompts and messages are mixed")
        yield Prompt(number, given, fields)


def _answered(options: GenerateOptions) -> set[int]:
    """Lines that have a reply in the output file, which is left with these alone."""
    if options.out is None or not Path(options.out).exists():
        return set()
    path = Path(options.out)
    if not options.resume:
        raise InvalidInput(f"--out {path}: exists; --resume goes on with it")
    kept: dict[int, bytes] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            if not line.endswith(b"\n"):
                break  # the program was killed while it wrote this
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("line"), int):
            raise InvalidInput(f"--out {path}: was not written by this command")
        if "response" in record:
            kept[record["line"]] = line
    file = Replacing(path, "--out")
    try:
        file.stream.writelines(kept.values())
        file.commit()
    finally:
        file.discard()
    return set(kept)


class GenerateJob:
    """One run of the command.

    prompts: those to answer.
    found: how many are answered already.
    out: where replies are written.
    """

    def __init__(
        self, options: GenerateOptions, prompts: Sequence[Prompt], found: int, out: BinaryIO
    ) -> None:
        self._options = options
        self._out = out
        self._prompts = prompts
        self._found = found
        self._screen = Screen(sys.stderr)
        self._report = ReplyReport()
        self._errors: dict[int, SollolError] = {}
        self._written = 0

    @property
    def missing(self) -> int:
        """The number of prompts without a reply."""
        return len(self._prompts) - self._written + len(self._errors)

    async def work(self) -> None:
        """Answer all prompts and write each reply as it comes, in the order of the prompts."""
        if not self._prompts:
            return
        options = self._options
        is_chat = not isinstance(self._prompts[0].given, str)
        kind: Literal["chat", "generate"] = "chat" if is_chat else "generate"
        fields = {} if options.system is None or is_chat else {"system": options.system}
        asked = [each.given if not is_chat else self._conversation(each) for each in self._prompts]
        async with AsyncExitStack() as stack:
            nodes = await registry_of(options.nodes, self._screen, is_quiet=options.as_json)
            stack.enter_context(self._screen.log())
            pool = await stack.enter_async_context(OllamaPool(nodes))
            advance = stack.enter_context(self._screen.progress("answering", len(asked)))
            given: Any = {"kind": kind, "on_error": "return", **fields}
            stream = await stack.enter_async_context(pool.map(options.model, asked, **given))
            try:
                async for reply in stream:
                    prompt = self._prompts[stream.index]
                    record = _record(prompt, reply, stream.errors.get(stream.index))
                    # Threads are not cancelled, so a line is written whole or not at all.
                    await asyncio.to_thread(self._write, record)
                    advance(1)
            finally:
                self._report = stream.report
                self._errors = {
                    self._prompts[index].line: error
                    for index, error in stream.errors.items()
                    if index < self._written
                }

    def _write(self, record: bytes) -> None:
        self._out.write(record)
        self._out.flush()
        self._written += 1

    def _conversation(self, prompt: Prompt) -> Sequence[Any]:
        if self._options.system is None:
            return prompt.given
        return [{"role": "system", "content": self._options.system}, *prompt.given]

    def finish(self) -> None:
        """Print the summary."""
        if self._options.as_json:
            # If the replies go to stdout, the summary must not.
            write_json(self._summary(), sys.stdout if self._options.out else sys.stderr)
            return
        line = self._screen.line
        if not self._prompts:
            line("Every prompt has a reply already." if self._found else "There are no prompts.")
        elif self._written:
            line(str(self._report))
        for number, error in list(self._errors.items())[:ERRORS_SHOWN]:
            line(f"no reply to line {number}: {error}", style="red")
        if self.missing:
            words = f"{self.missing:,} of {len(self._prompts) + self._found:,} have no reply."
            if self._options.out is not None:
                words += f" Run it again with --resume to go on with {self._options.out}."
            line(words, style="red")

    def _summary(self) -> dict[str, Any]:
        report = self._report
        return {
            "model": self._options.model,
            "prompts": len(self._prompts) + self._found,
            "found": self._found,
            "replies": report.replies,
            "missing": self.missing,
            "seconds": round(report.seconds, 3),
            "prompt_tokens": report.prompt_tokens,
            "reply_tokens": report.reply_tokens,
            "tokens_per_second": round(report.tokens_per_second, 1),
            "out": self._options.out,
            "nodes": dict(report.nodes),
            "errors": [
                {"line": number, "error": str(error)} for number, error in self._errors.items()
            ],
        }


def _record(
    prompt: Prompt, reply: ChatReply | GeneratedText | None, error: SollolError | None
) -> bytes:
    """One line of the output: the fields of the prompt, and the reply or the error."""
    record: dict[str, Any] = {"line": prompt.line}
    record |= {name: each for name, each in prompt.fields.items() if name not in _OWN_FIELDS}
    if reply is None:
        record |= {"error": str(error)}
    else:
        read, written = token_counts(reply)
        record |= {"response": str(reply), "prompt_tokens": read, "reply_tokens": written}
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
