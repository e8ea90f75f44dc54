"""lm-evaluation-harness's `LM`, answered by this project's scoring core: any model that eval/backbone.py takes.

Every process runs the whole harness and the core shares the work, so the harness is told of one process only: the
results do not depend on how many there are.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from eval.cache import AnswerCache
from eval.generation import generate
from eval.harness_chat import as_conversation
from eval.questions import Prompt, Request, Scored, ScoringError
from eval.scoring import Model, Progress, score
from recipes.weights.folder_files import end_of_turn

MAX_NEW_TOKENS = 256  # where a task does not say; the harness's own default
OF_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")  # arguments that mean nothing without it


class ScoringLM(TemplateLM):
    """Log-likelihoods and texts for the harness.

    model: gives the backbone when something has to be computed. max_length: tokens that the model reads at most.
    cache: the answers kept for a digest of a task's requests. chats: questions come as conversations, so that an answer
    ends where a turn does. `truncated` counts, by task, the examples that lost their beginning.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        max_length: int,
        batch_size: int,
        cache: Callable[[str], AnswerCache | None] = lambda digest: None,
        progress: Callable[[str, int], Progress | None] = lambda label, total: None,
        chats: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.cache = cache
        self.progress = progress
        self.truncated: collections.Counter[str] = collections.Counter()
        self._cut: set[tuple[str, int | None]] = set()  # the examples that it counts
        self._ids: dict[tuple[str, bool | None], list[int]] = {}
        self._end = "" if tokenizer.eos_token_id is None else tokenizer.decode(tokenizer.eos_token_id)
        begin = self.prefix_token_id
        self._begin = None if begin is None else tokenizer.decode(begin)
        self._stops = [end_of_turn(tokenizer)] if chats and end_of_turn(tokenizer) else []

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context stands for: begin of text, or end of text where there is none."""
        begin = self.tokenizer.bos_token_id
        return begin if begin is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness would know kept requests by, which are not kept here."""
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return as_conversation(self.tokenizer, chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As the harness's `hf` model encodes: with the tokenizer's special tokens, unless they are there already."""
        key = (string, add_special_tokens)
        if key not in self._ids:
            special = self._special(string) if add_special_tokens is None else add_special_tokens
            self._ids[key] = self.tokenizer.encode(string, add_special_tokens=special)
        return self._ids[key]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = []
        for request in requests:
            context, continuation = request.args
            spaces = len(context) - len(context.rstrip())
            pairs += [context + continuation, context[: len(context) - spaces]]
        self._look_up(pairs)
        asked = []
        for request in requests:
            context, continuation = request.args
            if context:
                before, after = self._encode_pair(context, continuation)
            else:
                after = self.tok_encode(continuation, add_special_tokens=False)
                before = [self.prefix_token_id]
                if after[:1] == before:
                    before, after = after[:1], after[1:]
            asked.append(self._request(before, after, request))
        self._ids.clear()
        return [(answer.total, answer.greedy) for answer in self._score(asked, requests)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        asked, owners, counts = [], [], []
        for request in requests:
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [utils.make_disjoint_window(window) for window in windows]
            made = [self._request(before, after, request) for before, after in pairs]
            asked += made
            owners += [request] * len(made)
            counts.append(len(made))
        answers = iter(self._score(asked, owners))
        return [sum(next(answers).total for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        seen: collections.Counter[Prompt] = collections.Counter()
        prompts = []
        for request in requests:
            context, settings = request.args
            asked = dict(normalize_gen_kwargs(settings, MAX_NEW_TOKENS))
            stop, most = (*asked.pop("until"), *self._stops), asked.pop("max_gen_toks")
            room = self.max_length - most
            name = _name(request)
            if room <= 0:
                raise ScoringError(f"{name}: {most} new tokens leave no room for the question in {self.max_length}")
            ids = tuple(self.tok_encode(context))
            if len(ids) > room:
                self._count_cut(request)
            samples = bool(asked.get("do_sample"))
            if not samples:  # what else is asked, such as num_beams, holds for the likeliest text too
                asked = {key: value for key, value in asked.items() if key not in OF_SAMPLING}
            prompt = Prompt(ids[-room:], most, stop, json.dumps(asked, sort_keys=True), name)
            if samples:  # asked for again, a sampled text is another one
                again = Prompt(prompt.tokens, most, stop, prompt.settings, name, copy=seen[prompt])
                seen[prompt] += 1
                prompt = again
            prompts.append(prompt)
        texts: dict[int, str] = {}
        for task, places in _by_task(requests).items():
            part = [prompts[i] for i in places]
            told = self.progress(task, len(set(part)))
            cache = self.cache(_digest([prompt.key for prompt in part]))
            written = generate(self.model, part, self.tokenizer, self.batch_size, cache, told, as_harness=True)
            texts.update(zip(places, written, strict=True))
        whole = []
        for index, prompt in enumerate(prompts):
            stops = handle_stop_sequences(list(prompt.stop), eos=self._end or None)
            whole.append(postprocess_generated_text(texts[index], stops, None))
        return whole

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError  # what the class above wants for its own `loglikelihood`, which is not used here

    def _request(self, before: Sequence[int], after: Sequence[int], request: Instance) -> Request:
        """The last max_length + 1 tokens: the last one is predicted, not read."""
        keep = max(0, self.max_length + 1 - len(after))
        if len(before) > keep:
            self._count_cut(request)
        return Request(tuple(before[len(before) - min(keep, len(before)) :]), tuple(after), _name(request))

    def _count_cut(self, request: Instance) -> None:
        """An example has a request for each of its choices, and counts once."""
        example = str(request.task_name), request.doc_id
        self.truncated[example[0]] += example not in self._cut
        self._cut.add(example)

    def _score(self, asked: Sequence[Request], owners: Sequence[Instance]) -> list[Scored]:
        answers: dict[int, Scored] = {}
        for task, places in _by_task(owners).items():
            part = [asked[i] for i in places]
            told = self.progress(task, len(set(part)))
            cache = self.cache(_digest([request.key for request in part]))
            scored = score(self.model, part, self.batch_size, self.max_length, cache, told)
            answers.update(zip(places, scored, strict=True))
        return [answers[index] for index in range(len(asked))]

    def _look_up(self, texts: Sequence[str]) -> None:
        """Encode each different text once, in one call for those alike in special tokens."""
        for special in (True, False):
            new = [t for t in dict.fromkeys(texts) if t and self._special(t) == special and (t, None) not in self._ids]
            if new:
                for text, ids in zip(new, self.tokenizer(new, add_special_tokens=special)["input_ids"], strict=True):
                    self._ids[text, None] = ids

    def _special(self, text: str) -> bool:
        return not (self._begin and text.startswith(self._begin))


def _by_task(requests: Sequence[Instance]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        places.setdefault(str(request.task_name), []).append(index)
    return places


def _name(request: Instance) -> str:
    return f"{request.task_name}, example {(request.doc_id or 0) + 1}"


def _digest(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()
