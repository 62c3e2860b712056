"""Checks `polity serve` with the official client: python openai_client.py http://127.0.0.1:8000/v1"""

import asyncio
import sys

import openai

URL = sys.argv[1]
client = openai.OpenAI(base_url=URL, api_key="sesame", max_retries=0)
ONCE = [{"role": "user", "content": "Once upon a time"}]
checks = 0


def check(name):
    def run(f):
        global checks
        try:
            f()
        except Exception as error:
            raise SystemExit(f"{name}: {type(error).__name__}: {error}") from error
        checks += 1

    return run


def refused(error, status, param, f):
    try:
        f()
    except error as found:
        assert found.status_code == status, found
        assert found.param == param, (found.param, found)
        return found
    raise AssertionError("was not refused")


@check("models")
def _():
    assert [m.id for m in client.models.list()] == ["tales"]
    assert client.models.retrieve("tales").owned_by == "polity"


@check("chat")
def _():
    a, b = (client.chat.completions.create(model="tales", messages=ONCE, seed=1, max_tokens=20) for _ in range(2))
    assert a.choices[0].message.role == "assistant" and a.choices[0].message.content
    assert a.choices == b.choices and a.id != b.id
    assert a.usage.total_tokens == a.usage.prompt_tokens + a.usage.completion_tokens
    assert a.choices[0].finish_reason == "length" and a.usage.completion_tokens == 20


@check("streaming")
def _():
    whole = client.chat.completions.create(model="tales", messages=ONCE, seed=2, max_tokens=40)
    chunks = list(client.chat.completions.create(
        model="tales", messages=ONCE, seed=2, max_tokens=40, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len(chunks) > 10, "it came in pieces"


@check("the client's own stream helper")
def _():
    with client.chat.completions.stream(model="tales", messages=ONCE, temperature=0, stop=".", max_tokens=200) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content and final.choices[0].finish_reason == "stop"


@check("log-probs")
def _():
    answer = client.chat.completions.create(
        model="tales", messages=ONCE, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 8 == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob <= 0
    assert bytes(b for token in content for b in token.bytes).decode().lstrip() == answer.choices[0].message.content.lstrip()


@check("n")
def _():
    answer = client.chat.completions.create(model="tales", messages=ONCE, n=5, seed=3, max_tokens=30)
    assert [c.index for c in answer.choices] == list(range(5))
    assert len({c.message.content for c in answer.choices}) == 5


@check("stop")
def _():
    free = client.completions.create(model="tales", prompt="Once upon a time", temperature=0, max_tokens=40).choices[0].text
    stop = free[20:24]
    cut = client.completions.create(model="tales", prompt="Once upon a time", temperature=0, max_tokens=40, stop=[stop, "zzz"])
    assert cut.choices[0].text == free[: free.index(stop)] and cut.choices[0].finish_reason == "stop"


@check("completions: several prompts, echo, log-probs")
def _():
    answer = client.completions.create(model="tales", prompt=["Once", "The"], max_tokens=5, echo=True, logprobs=2)
    assert len(answer.choices) == 2 and answer.choices[1].text.startswith("The")
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(logprobs.text_offset)
    # A sampled token may be none of the two likeliest.
    assert all(len(top) in (2, 3) for top in logprobs.top_logprobs[1:])


@check("completions: streaming")
def _():
    chunks = client.completions.create(model="tales", prompt="Once", max_tokens=30, seed=4, stream=True)
    whole = client.completions.create(model="tales", prompt="Once", max_tokens=30, seed=4)
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text


@check("a stream that is left")
def _():
    stream = client.completions.create(model="tales", prompt="Once", max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    assert client.completions.create(model="tales", prompt="Once", max_tokens=1).choices


@check("errors")
def _():
    refused(openai.BadRequestError, 400, "temperature",
            lambda: client.chat.completions.create(model="tales", messages=ONCE, temperature=9))
    refused(openai.BadRequestError, 400, "tools",
            lambda: client.chat.completions.create(model="tales", messages=ONCE, tools=[
                {"type": "function", "function": {"name": "f", "parameters": {}}}]))
    found = refused(openai.BadRequestError, 400, "messages",
                    lambda: client.chat.completions.create(model="tales", messages=ONCE, max_tokens=9999))
    assert found.code == "context_length_exceeded"
    found = refused(openai.NotFoundError, 404, "model",
                    lambda: client.chat.completions.create(model="gpt-x", messages=ONCE))
    assert found.code == "model_not_found"


@check("keys")
def _():
    other = openai.OpenAI(base_url=URL, api_key="wrong", max_retries=0)
    found = refused(openai.AuthenticationError, 401, None, lambda: other.models.list())
    assert found.code == "invalid_api_key"


@check("paths that are not there")
def _():
    refused(openai.NotFoundError, 404, None, lambda: client.embeddings.create(model="tales", input="a"))


@check("forty at once")
def _():
    async def all_of_them():
        a = openai.AsyncOpenAI(base_url=URL, api_key="sesame", max_retries=0)
        ask = lambda seed: a.chat.completions.create(model="tales", messages=ONCE, seed=seed, max_tokens=30)
        return await asyncio.gather(*(ask(seed) for seed in range(40)))

    answers = asyncio.run(all_of_them())
    again = client.chat.completions.create(model="tales", messages=ONCE, seed=17, max_tokens=30)
    assert answers[17].choices == again.choices, "the same beside thirty-nine others"


print(f"{checks} checks")
