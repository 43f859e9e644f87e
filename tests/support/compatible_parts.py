"""Requests, parts and streams for tests of every API that the gateway speaks."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=40, deadline=None)  # for each of four APIs; and machines are busy


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


texts = st.text(max_size=5)
numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308])
any_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
# Objects with the names that mean something, and values of which some do.
NAMES = (
    "model messages stream role content type text image_url url input_audio data tool_calls id "
    "function name arguments tool_call_id reasoning effort reasoning_effort stop max_tokens n "
    "max_completion_tokens temperature top_p top_k seed frequency_penalty presence_penalty tools "
    "tool_choice response_format json_schema schema logprobs top_logprobs stream_options echo "
    "include_usage prompt suffix best_of input instructions output call_id encrypted_content text "
    "format parameters description strict truncation background max_output_tokens summary system "
    "source media_type thinking tool_use_id is_error input_schema stop_sequences output_config "
    "previous_response_id conversation"
)
WORDS = (
    "m user assistant tool system text image image_url input_audio tool_use tool_result thinking "
    "message function function_call function_call_output reasoning input_text output_text none "
    "input_image input_file base64 data:;base64,AAAA http://x json_object json_schema low enabled "
    'web_search document server_tool_use web_search_tool_result namespace {} {"a":1} AAAA'
)
names, words = st.sampled_from(NAMES.split()), st.sampled_from(WORDS.split())
