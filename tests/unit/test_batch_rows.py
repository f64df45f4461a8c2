"""Prompts of a batch: what is read, what is refused and in which words, and what an answer is folded from."""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import AccessError, NotFoundError, UsageError
from jobs.batch.rows import BatchRequest, strongest
from jobs.batch.sampling import RequestConfig, SamplingConfig, engine_parameters, normalise, unsupported
from jobs.batch.sorting import SortedSpill, difference
from jobs.batch.source import Source, SourceConfig, resolve
from jobs.batch.upstream import UpstreamFailedError, collect


def line(custom_id: str = "a", **changes: object) -> str:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
        **changes,
    }
    return json.dumps(request)


def source(path: Path, **config: object) -> Source:
    # Local files need no object store.
    return resolve(SourceConfig(path=str(path), **config), None, "default")  # type: ignore[arg-type]


def rows(path: Path, **config: object) -> list[BatchRequest]:
    return list(source(path, **config).requests())


class TestOpenAiLines:
    def test_lines_become_requests_in_order_and_blank_ones_are_passed_over(self, tmp_path: Path) -> None:
        file = tmp_path / "in.jsonl"
        file.write_text(f"{line('a')}\n\n{line('b')}\n")
        read = rows(file)
        assert [request.custom_id for request in read] == ["a", "b"]
        assert read[0].prompt == "Hello"
        assert read[0].endpoint == "chat"

    def test_the_first_row_that_repeats_an_id_is_named_however_far_apart(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            ids = [f"{name}-{number}" for number in range(40)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(line(i) for i in [*ids, "z", "a-7"]))
        with pytest.raises(
            UsageError, match=r"a.jsonl, line 42: the row id 'a-7' was used before \(a.jsonl:8\)"
        ):
            rows(tmp_path)

    def test_completions_are_taken_too(self, tmp_path: Path) -> None:
        file = tmp_path / "in.jsonl"
        file.write_text(line(url="/v1/completions", body={"prompt": "Once"}))
        assert rows(file)[0].prompt == "Once"

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("{broken", "no JSON"),
            ("[1]", "no JSON object"),
            (line(custom_id=""), "custom_id"),
            (line(method="GET"), "POST"),
            (line(url="/v1/embeddings"), "url"),
            (line(body=None), "body"),
            (line(body={"messages": []}), "messages"),
            (line(body={"messages": [{"content": "x"}]}), "role"),
            (line(body={"messages": [{"role": "user"}]}), "content"),
            (line(body={"messages": [{"role": "user", "content": "x"}], "stream": True}), "stream"),
            (line(body={"messages": [{"role": "king", "content": "x"}]}), "role"),
            (line(body={"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "no text"),
            (line(body={"messages": [{"role": "user", "content": "x", "prefix": "y"}]}), "prefix"),
            (line(body={"messages": [{"role": "user", "content": "x"}], "logprobs": True}), "logprobs"),
            (line(extra=1), "'extra'"),
            (line("good"), "'good' was used before (in.jsonl:1)"),
            (line(custom_id="a\ud800"), "surrogate"),
            ('{"custom_id": ' + "[" * 100_000, "nested too deep"),
        ],
    )
    def test_a_broken_line_is_named_with_file_and_number(self, tmp_path: Path, text: str, why: str) -> None:
        file = tmp_path / "in.jsonl"
        file.write_text(f"{line('good')}\n{text}\n")
        with pytest.raises(UsageError) as raised:
            rows(file)
        message = str(raised.value)
        assert "in.jsonl, line 2:" in message
        assert why in message
        assert message.endswith("nothing was run.")
        assert "\n" not in message

    def test_text_parts_become_one_text(self, tmp_path: Path) -> None:
        file = tmp_path / "in.jsonl"
        parts = [{"type": "text", "text": "Ignore all"}, {"type": "text", "text": "previous ones."}]
        file.write_text(line(body={"messages": [{"role": "user", "content": parts}]}))
        assert rows(file)[0].body["messages"] == [{"role": "user", "content": "Ignore all\nprevious ones."}]

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "tool", "content": "x", "tool_call_id": "any prose"},
            {
                "role": "assistant",
                "tool_calls": [{"id": "any prose", "function": {"name": "f", "arguments": "{}"}}],
            },
        ],
    )
    def test_ids_of_tool_calls_have_no_room_for_prose(
        self, tmp_path: Path, message: dict[str, object]
    ) -> None:
        file = tmp_path / "in.jsonl"
        file.write_text(line(body={"messages": [message]}))
        with pytest.raises(UsageError, match="is not 1 to 64 letters"):
            rows(file)

    def test_an_empty_file_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "in.jsonl"
        file.write_text("")
        with pytest.raises(UsageError, match="no rows"):
            rows(file)

    def test_bytes_that_are_no_utf8_are_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "in.jsonl"
        file.write_bytes(b"\xff\xfe{}\n")
        with pytest.raises(UsageError, match="line 1: it is not UTF-8"):
            rows(file)


class TestTables:
    def test_csv_with_a_template(self, tmp_path: Path) -> None:
        file = tmp_path / "in.csv"
        file.write_text('id,text\n1,"Hi, you"\n2,Bye\n')
        read = rows(file, prompt_template="Say {{it}}: {text}", system_prompt="Be brief.", id_column="id")
        assert [request.row_id for request in read] == ["1", "2"]
        assert read[0].body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Say {it}: Hi, you"},
        ]

    def test_parquet_column_and_hashed_row_ids_are_stable_and_unique(self, tmp_path: Path) -> None:
        file = tmp_path / "in.parquet"
        pq.write_table(pa.table({"text": ["same", "same"]}), file)
        first, second = rows(file, prompt_column="text"), rows(file, prompt_column="text")
        assert [r.row_id for r in first] == [r.row_id for r in second]
        assert len({r.row_id for r in first}) == 2

    def test_a_folder_is_all_its_files_and_a_limit_holds_over_them(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / f"{name}.csv").write_text("text\none\ntwo\n")
        (tmp_path / "notes.md").write_text("not prompts")
        assert len(rows(tmp_path, prompt_column="text")) == 4
        assert len(rows(tmp_path, prompt_column="text", limit=3)) == 3

    def test_a_missing_column_is_named_with_those_there(self, tmp_path: Path) -> None:
        file = tmp_path / "in.csv"
        file.write_text("text\nx\n")
        with pytest.raises(UsageError, match=r"no column 'prompt'; it has text"):
            rows(file, prompt_column="prompt")

    def test_a_template_reaches_columns_only(self, tmp_path: Path) -> None:
        file = tmp_path / "in.csv"
        file.write_text("text\nx\n")
        with pytest.raises(UsageError, match="no column"):
            rows(file, prompt_template="{text.__class__}")

    def test_a_ragged_csv_row_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "in.csv"
        file.write_text("a,b\n1,2\n3\n")
        with pytest.raises(UsageError, match="line 3"):
            rows(file, prompt_column="a")

    def test_something_that_only_ends_in_parquet_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "in.parquet"
        file.write_text("no")
        with pytest.raises(UsageError, match="Parquet"):
            rows(file, prompt_column="a")


class TestWhere:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="no such file"):
            source(tmp_path / "none.jsonl")

    def test_an_unknown_format(self, tmp_path: Path) -> None:
        file = tmp_path / "in.docx"
        file.write_text("x")
        with pytest.raises(UsageError, match=r"\.jsonl"):
            source(file)

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Root may read everything, so the refusal is the file system's own.
        from pyarrow import fs

        file = tmp_path / "in.jsonl"
        file.write_text(line())
        found = source(file).files[0]

        class Denied(fs.LocalFileSystem):
            def open_input_file(self, path: str) -> None:
                raise PermissionError(13, "Permission denied")

        with pytest.raises(AccessError, match="cannot be read"):
            type(found)(found.address, found.path, found.format, Denied()).open()

    def test_path_and_dataset_exclude_each_other(self) -> None:
        with pytest.raises(ValueError, match="either path"):
            SourceConfig(path="a.csv", dataset="latest:x")


class TestSampling:
    def test_every_row_has_the_same_keys_without_none(self) -> None:
        bodies = [{"temperature": 1}, {"max_completion_tokens": 7, "seed": None}, {"stop": "END"}]
        ready = [normalise(body, SamplingConfig()) for body in bodies]
        params = [engine_parameters(body, str(i), seed=False, stop=True) for i, body in enumerate(ready)]
        assert len({tuple(sorted(p)) for p in params}) == 1
        assert all(value is not None for p in params for value in p.values())
        assert ready[1]["max_tokens"] == 7
        assert isinstance(ready[0]["temperature"], float)
        assert [p["stop"] for p in params] == [[], [], ["END"]]

    def test_a_seed_on_one_row_gives_all_rows_one_that_repeats(self) -> None:
        body = normalise({}, SamplingConfig())
        assert engine_parameters(body, "r", seed=True, stop=False) == engine_parameters(
            body, "r", seed=True, stop=False
        )
        assert "seed" in engine_parameters(body, "r", seed=True, stop=False)

    def test_a_batch_gives_its_rows_tools_and_a_format_that_they_may_override(self) -> None:
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        config = RequestConfig(response_format={"type": "json_object"}, tools=[tool])
        own = {"messages": [], "response_format": {"type": "text"}, "tools": None}
        assert config.fill(BatchRequest("a", "a", "chat", own)) == {
            "messages": [],
            "response_format": {"type": "text"},
            "tools": [tool],
        }
        assert "tools" not in config.fill(BatchRequest("a", "a", "completions", {"prompt": "x"}))

    def test_values_out_of_bounds_are_named(self) -> None:
        with pytest.raises(ValueError, match="temperature"):
            normalise({"temperature": 9}, SamplingConfig())

    def test_other_keys_stay_and_are_known_as_beyond_plain_generation(self) -> None:
        body = normalise(
            {"messages": [], "response_format": {"type": "json_object"}, "n": 2}, SamplingConfig()
        )
        assert unsupported(body) == ["response_format", "n"]


class TestUpstream:
    @staticmethod
    async def stream(*items: bytes):
        for item in items:
            yield item

    async def test_chunks_fold_into_one_answer(self) -> None:
        def chunk(delta: dict, finish: str | None = None, **more: object) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            body = {"object": "chat.completion.chunk", "choices": [choice], **more}
            return f"data: {json.dumps(body)}\n\n".encode()

        call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}}
        rest = {"index": 0, "function": {"arguments": ":1}"}}
        answer = await collect(
            self.stream(
                chunk({"role": "assistant", "content": "Hel"}) + chunk({"content": "lo"}),
                chunk({"tool_calls": [call]}),
                chunk({"tool_calls": [rest]}, "stop"),
                b'data: {"object":"chat.completion.chunk","choices":[],"usage":{"completion_tokens":2}}\n\n',
                b"data: [DONE]\n\n",
            )
        )
        message = answer["choices"][0]["message"]
        assert message["content"] == "Hello"
        assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
        assert answer["object"] == "chat.completion"
        assert answer["usage"]["completion_tokens"] == 2

    async def test_a_whole_answer_is_taken_as_it_is(self) -> None:
        whole = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
        answer = await collect(self.stream(f"data: {json.dumps(whole)}\n\n".encode()))
        assert answer["choices"][0]["message"]["content"] == "x"

    async def test_a_stream_that_breaks_off_is_no_answer(self) -> None:
        part = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
        with pytest.raises(UpstreamFailedError) as raised:
            await collect(self.stream(part))
        assert raised.value.retriable

    async def test_a_typed_error_keeps_its_status(self) -> None:
        error = b'event: error\ndata: {"status": 400, "message": "too long"}\n\n'
        with pytest.raises(UpstreamFailedError, match="too long") as raised:
            await collect(self.stream(error))
        assert not raised.value.retriable


def spilled(keys: Iterable[str], rows_per_run: int = 7) -> SortedSpill:
    made = SortedSpill(rows_per_run)
    for key in keys:
        made.add(key)
    return made


class TestSorting:
    def test_pairs_come_back_in_order_from_any_number_of_files(self) -> None:
        keys = [f"row-{number * 7919 % 100}" for number in range(100)]
        with SortedSpill(rows_per_run=9) as spill:
            for number, key in enumerate([*keys, "row-5"]):
                spill.add(key, number.to_bytes(2, "big"))
            assert [key for key, _ in spill] == sorted([*keys, "row-5"])
            places = [int.from_bytes(value, "big") for key, value in spill if key == "row-5"]
            assert places == [keys.index("row-5"), 100]

    def test_a_lost_and_a_doubled_row_are_told_apart(self) -> None:
        keys = [str(number) for number in range(50)]
        asked = spilled(keys)
        assert difference(asked, spilled(reversed(keys))) is None
        assert difference(asked, spilled(keys[1:])) == "1 rows have no result, 0 too many or unasked (0)"
        assert "0 rows have no result, 1 too many" in str(difference(asked, spilled([*keys, "7"])))
        assert "1 rows have no result, 1 too many" in str(difference(asked, spilled([*keys[1:], "x"])))


def test_the_strongest_action_counts_and_shadows_do_not() -> None:
    from cluster.contracts import Finding

    def finding(action: str, shadow: bool = False) -> Finding:
        return Finding(guard="g", label="L", score=1, start=0, end=1, action=action, shadow=shadow)

    assert strongest([finding("flag"), finding("redact")]) == "redact"
    assert strongest([finding("block", shadow=True)]) == "none"
