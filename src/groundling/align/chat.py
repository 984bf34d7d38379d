"""`groundling chat`: chat with a model in the terminal."""

import io
import logging
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

import tyro

from groundling.bundle import ChatBundle, load_chat_bundle
from groundling.config import parse
from groundling.data.examples.encoding import EncodingCounts, encode_chat_prompt
from groundling.errors import DataError
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.sample.scheduler import run_all
from groundling.system.logs import show_decoder
from groundling.system.output import put
from groundling.system.runtime import pick_device
from groundling.text.chat.messages import Message
from groundling.text.chat.template import to_ids
from groundling.text.chat.thoughts import ReplyDecoder
from groundling.text.tokenizer import require_unicode

log = logging.getLogger(__name__)

HELP = "/new starts a new conversation, /quit or Ctrl-D exits, Ctrl-C stops a reply"


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Chat with a fine-tuned model: groundling chat BUNDLE. One line is one message."""

    path: tyro.conf.Positional[str]
    """Bundle, checkpoint or run folder."""
    system: str = ""
    """System message; empty: the chat template's default, if it has one."""
    thinking: bool = True
    """Let a reasoning model think before it replies; the thoughts are not shown."""
    context: int | None = None
    """Context length in tokens; a shorter one uses less memory. None: the model's."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = field(
        default_factory=lambda: SamplingConfig(max_new_tokens=200)
    )
    decode: tyro.conf.OmitArgPrefixes[DecodeConfig] = field(default_factory=DecodeConfig)


class Chat:
    """A growing conversation; the engine reuses the keys and values of earlier turns.

    Args:
        bundle: a chat model.
        sampling: sampling settings; `max_new_tokens` limits a reply.
        decode: settings of the decoding engine.
        system: system message.
        thinking: whether a reasoning model may think before it replies.
    """

    def __init__(
        self,
        bundle: ChatBundle,
        sampling: SamplingConfig,
        decode: DecodeConfig | None = None,
        system: str = "",
        thinking: bool = True,
    ) -> None:
        self.messages: list[Message] = []
        self._bundle, self._chat, self._system = bundle, bundle.chat, system
        self._engine = Engine(bundle.model, decode, n_ids=bundle.n_ids, end_ids=bundle.end_ids)
        self._sampling = sampling
        thoughts = bundle.chat.thinking
        self._empty_thoughts = [] if thoughts is None or thinking else to_ids(thoughts.nothing, bundle.tokenizer)
        self._n_replies = 0
        self.begin()

    def begin(self) -> None:
        """Start a new conversation."""
        self.messages = [Message("system", self._system)] if self._system else []

    def reply(self, words: str) -> Iterator[str]:
        """Stream the reply to a user message. If the iterator is closed early, the partial reply is kept.

        Raises:
            DataError: the tokenizer cannot encode the message; the conversation is unchanged.
        """
        messages = [*self.messages, Message("user", words)]
        pieces = self._generate(self._prompt(messages), self._n_replies)
        self._n_replies += 1
        return self._recorded(messages, pieces)

    def one_reply(self, messages: Sequence[Message], seed: int) -> str:
        """The complete reply to another conversation; this one is unchanged.

        Raises:
            DataError: the tokenizer cannot encode it.
        """
        return "".join(self._generate(self._prompt(messages), seed))

    def _recorded(self, messages: list[Message], pieces: Generator[str, None, None]) -> Iterator[str]:
        """Yield the pieces of a reply, then append it to the conversation."""
        text: list[str] = []
        try:
            for piece in pieces:
                text.append(piece)
                yield piece
        finally:
            pieces.close()
            self.messages = [*messages, Message("assistant", "".join(text))]

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        bundle, counts = self._bundle, EncodingCounts()
        room = bundle.config.block_size - min(self._sampling.max_new_tokens, bundle.config.block_size // 2)
        prompt = encode_chat_prompt(messages, self._chat, bundle.tokenizer, room - len(self._empty_thoughts), counts)
        if prompt is None:
            raise DataError(counts.first_unknown or "there is nothing to reply to")
        return prompt + self._empty_thoughts

    def _generate(self, prompt: list[int], number: int) -> Generator[str, None, None]:
        request = self._engine.new_request(prompt, self._sampling, row_generator(self._sampling.seed, number))
        decoder = ReplyDecoder(self._chat, self._bundle.tokenizer)
        with closing(run_all(self._engine, [request])) as outputs:
            for _, tokens in outputs:
                yield "".join([decoder.push(token.id).words for token in tokens])
        yield decoder.finish().words
        if decoder.is_thinking:
            log.warning(
                f"the reply was cut after {len(request.tokens) - len(prompt)} tokens, while the model was thinking; "
                "give more with --max-new-tokens, or --no-thinking"
            )


def main(argv: list[str]) -> int:
    """The verb `chat`."""
    config = parse(ChatConfig, argv, "groundling chat")
    show_decoder()
    bundle = load_chat_bundle(config.path, pick_device(config.device), context=config.context)
    chat = Chat(bundle, config.sampling, config.decode, config.system, config.thinking)
    is_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):  # piped input is UTF-8 in any locale, as for `sample`
        encoding = sys.stdin.encoding if is_terminal else "utf-8-sig"
        sys.stdin.reconfigure(encoding=encoding, errors="surrogateescape")  # report an invalid line and continue
    if is_terminal:
        log.info(HELP)
    while True:
        try:
            words = input("> " if is_terminal else "").strip()
            require_unicode(words)
        except EOFError:
            return 0
        except DataError as error:
            log.error(str(error))
            continue
        if words == "/quit":
            return 0
        if words == "/new":
            chat.begin()
        elif words.startswith("/"):
            log.info(HELP)
        elif words:
            _answer(chat, words)


def _answer(chat: Chat, words: str) -> None:
    try:
        pieces = chat.reply(words)
    except DataError as error:
        log.error(str(error))
        return
    try:
        for piece in pieces:
            put(piece)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
    put("\n")
