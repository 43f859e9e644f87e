"""Which texts a server cut, by what it counted for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.node import LoadedModel, ModelInfo, NodeSpec, NodeState
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.token_counts import weight
from aiosollol.core.truncation import Counted, check_on_truncate, context_limit, cut_texts
from aiosollol.errors import InvalidInput

M = "all-minilm:latest"
LIMITS = [
    # models, loaded, num_ctx, limit
    pytest.param({}, {}, None, 0, id="nothing known"),
    pytest.param({M: ModelInfo(M)}, {M: LoadedModel(M)}, None, 0, id="nothing reported"),
    pytest.param({M: ModelInfo(M, context_length=512)}, {}, None, 512, id="trained"),
    pytest.param(
        {M: ModelInfo(M, context_length=512)},
        {M: LoadedModel(M, context_length=256)},
        None,
        256,
        id="loaded with less",
    ),
    pytest.param({}, {}, 128, 128, id="asked for"),
    pytest.param({M: ModelInfo(M, context_length=512)}, {}, 4096, 512, id="asked for more"),
    pytest.param(
        {}, {M: LoadedModel(M, context_length=256)}, 1024, 1024, id="asked for: loaded again"
    ),
    pytest.param({M: ModelInfo(M, context_length=512)}, {}, 0, 512, id="no number of tokens"),
    pytest.param({M: ModelInfo(M, context_length=512)}, {}, True, 512, id="no number"),
    pytest.param({M: ModelInfo(M, context_length=512)}, {}, "128", 512, id="no number either"),
]


@pytest.mark.parametrize(("models", "loaded", "num_ctx", "limit"), LIMITS)
def test_limits(
    models: dict[str, ModelInfo], loaded: dict[str, LoadedModel], num_ctx: object, limit: int
) -> None:
    state = NodeState(NodeSpec("http://10.0.0.2:11434"), models=models, loaded=loaded)
    assert context_limit(state, "all-minilm", num_ctx) == limit


def counted(*texts: tuple[int, int]) -> Counted:
    """Texts with these numbers of characters and tokens."""
    return Counted(["x" * length for length, _ in texts], sum(tokens for _, tokens in texts))


SHORT, EXACT, LONG, LONGER = (200, 52), (2040, 512), (4000, 512), (9000, 512)

CUT = [
    # answers, limit, positions
    pytest.param([counted(SHORT)], 512, [[]], id="short"),
    pytest.param([counted(LONG)], 512, [[0]], id="cut"),
    pytest.param([counted((4000, 510))], 512, [[0]], id="cut, and tokenised again"),
    pytest.param([counted((2100, 510))], 512, [[]], id="nearly at the limit"),
    pytest.param([counted(EXACT)], 512, [[0]], id="fits to the token: counted as cut"),
    pytest.param([counted(LONG, LONGER, LONG)], 512, [[0, 1, 2]], id="all cut"),
    pytest.param([counted(SHORT, LONG)], 512, [[1]], id="one of two"),
    pytest.param([counted((2, 3), (15000, 512))], 512, [[1]], id="as captured"),
    pytest.param([counted(*[SHORT] * 63)], 512, [[]], id="many short ones"),
    pytest.param([counted(*[SHORT] * 60, LONG, LONGER)], 512, [[60, 61]], id="two of many"),
    pytest.param([counted(*[(1800, 452)] * 9)], 512, [[]], id="all long, none cut"),
    pytest.param(
        [counted(*[(1800, 360)] * 5, *[(2300, 460)] * 5)], 512, [[]], id="five characters a token"
    ),
    pytest.param([counted(*[(700, 352)] * 5, (1400, 512))], 512, [[5]], id="two characters each"),
    pytest.param([counted(SHORT), counted(LONG), counted(SHORT)], 512, [[], [0], []], id="several"),
    pytest.param([Counted(["日本" * 400], 512)], 512, [[0]], id="a token for each character"),
    pytest.param([Counted(["日本" * 200, "word " * 380], 402 + 382)], 512, [[]], id="two scripts"),
    pytest.param([counted((30000, 2048))], 8192, [[0]], id="cut to a batch"),
    pytest.param([counted((30000, 2048))], 0, [[0]], id="cut to a batch, nothing known"),
    pytest.param([counted((8200, 2048))], 8192, [[]], id="as many tokens as a batch"),
    pytest.param([counted(LONG)], 0, [[0]], id="cut to an older batch"),
    pytest.param([counted((9000, 300))], 0, [[]], id="one text shows no limit"),
    pytest.param(
        [counted((2000, 256)), counted((3000, 256)), counted(SHORT)],
        0,
        [[0], [0], []],
        id="two show one",
    ),
    pytest.param(
        [counted((3000, 256), (2000, 256)), counted((400, 102), (300, 77))],
        512,
        [[0, 1], []],
        id="loaded with less than it was trained with",
    ),
    pytest.param([counted((2000, 256)), counted((2000, 256))], 0, [[], []], id="equal lengths"),
    pytest.param([counted((1000, 256)), counted((1100, 256))], 0, [[], []], id="usual counts"),
    pytest.param([counted((300, 20)), counted((900, 20))], 0, [[], []], id="too small"),
]


@pytest.mark.parametrize(("answers", "limit", "positions"), CUT)
def test_which_were_cut(answers: list[Counted], limit: int, positions: list[list[int]]) -> None:
    assert cut_texts(answers, limit) == positions


@given(
    st.lists(st.integers(1, 8000), min_size=1, max_size=40),
    st.sampled_from([256, 512, 2048]),
    st.sampled_from([3.0, 4.0, 5.5]),
)
def test_texts_of_one_kind_are_told_apart(
    lengths: list[int], limit: int, characters: float
) -> None:
    """All but those whose tokens are near the limit, by their count or by their length."""
    whole = [round(length / characters) + 2 for length in lengths]
    answer = Counted(["x" * length for length in lengths], sum(min(each, limit) for each in whole))
    (found,) = cut_texts([answer], limit)
    surely = {
        place
        for place, (each, text) in enumerate(zip(whole, answer.texts, strict=True))
        if min(each, weight(text)) > 1.3 * limit
    }
    never = {place for place, each in enumerate(whole) if each < 0.7 * limit}
    if len(found) < len(lengths):
        assert not never.intersection(found)
    assert surely <= set(found)


SETTINGS = [
    pytest.param(None, "warn", None, id="warn"),
    pytest.param(None, "ignore", None, id="ignore"),
    pytest.param(None, "raise", False, id="raise"),
    pytest.param(False, "raise", False, id="raise twice"),
    pytest.param(True, "warn", True, id="cut and warn"),
    pytest.param(True, "raise", InvalidInput, id="cut and raise"),
    pytest.param(None, "fail", InvalidInput, id="unknown"),
    pytest.param(None, None, InvalidInput, id="none"),
    pytest.param(None, [], InvalidInput, id="not hashable"),
]


@pytest.mark.parametrize(("truncate", "on_truncate", "sent"), SETTINGS)
def test_what_is_asked_of_the_server(
    truncate: bool | None, on_truncate: object, sent: bool | type[InvalidInput] | None
) -> None:
    settings = EmbedSettings(model="m", truncate=truncate)
    if sent is InvalidInput:
        with pytest.raises(InvalidInput, match="truncate"):
            check_on_truncate(settings, on_truncate)
    else:
        assert check_on_truncate(settings, on_truncate).truncate is sent
