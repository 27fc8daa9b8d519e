"""The loss of a text in units that do not depend on the tokenizer."""

import math

from train.data.tokens import Counts

_LARGEST_EXPONENT = 700.0  # exp overflows float64 at 709.8; perplexities are clipped before


def text_metrics(loss: float, counts: Counts) -> dict[str, float]:
    """A loss per token in units that do not depend on the tokenizer.

    The nats of the whole text, `loss * tokens`, are divided by its bytes and by its words. Bytes
    that the tokenizer loses count as 8 bits each, their cost without a model, so that no tokenizer
    gains by dropping text. In the official files of WikiText-103 a word is one of their tokens,
    including line ends, so that `word_perplexity` is the published metric.

    Args:
        loss: nats per token.
        counts: sizes of the text.

    Returns:
        `loss`, `perplexity` (per token), `bits_per_byte` if the bytes are known, and
        `word_perplexity` if there are words.

    Example:
        >>> text_metrics(math.log(2), Counts(tokens=30, bytes=120, words=10, documents=1))
        {'loss': 0.69..., 'perplexity': 2.0, 'bits_per_byte': 0.25, 'word_perplexity': 7.99...}
    """

    def perplexity(nats: float) -> float:
        return math.exp(min(nats, _LARGEST_EXPONENT))

    nats = loss * counts.tokens + counts.lost * counts.bytes * math.log(256)
    metrics = {"loss": loss, "perplexity": perplexity(loss)}
    if counts.bytes:  # unknown of text that is given as tokens
        metrics["bits_per_byte"] = nats / counts.bytes / math.log(2)
    if counts.words:  # a blank text has none
        metrics["word_perplexity"] = perplexity(nats / counts.words)
    return metrics
