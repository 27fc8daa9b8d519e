"""Small tokenizers of the kinds that are published, built here."""

import functools
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from train.data.subwords import Subwords

TEXT = (
    "It is not so, is it? The square of 1234567 is   a NUMBER; they'll see:\r\n\r\n\tnaïve café 。"
    "我们今天去北京\uff0c看看。 one_two=three+3.14159\nand\n\n\nso on...  \n"
) * 40

# As GPT-4 and Qwen split: line ends stay with what is before them, digits come in threes.
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(pre_tokenizer: Any, decoder: Any) -> Tokenizer:
    """Byte-level byte-pair encoding."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


def gpt2() -> Tokenizer:
    """GPT-2's rule of where words begin."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def roberta() -> Tokenizer:
    """The same with a space before the first word."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel())


def qwen() -> Tokenizer:
    """GPT-4's rule, after Unicode's composition of characters."""
    split = pre_tokenizers.Split(Regex(GPT4), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = _byte_level(pre_tokenizers.Sequence([split, bytes_]), decoders.ByteLevel())
    backend.normalizer = normalizers.NFC()
    return backend


def llama() -> Tokenizer:
    """Byte-pair encoding of the whole text, with a mark for each space and one in front."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    mark = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False, max_token_length=6
    )
    backend.train_from_iterator(TEXT.split(), trainer)
    return backend


def unigram() -> Tokenizer:
    """SentencePiece's unigram model, as T5 has it."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


def bert() -> Tokenizer:
    """Whole words in lower case, and their pieces."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


def words() -> Tokenizer:
    """Words without an unknown token: others cannot be encoded."""
    backend = Tokenizer(models.WordLevel({"</s>": 0, "the": 1, "square": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken("</s>")])
    return backend


def dropping() -> Tokenizer:
    """Byte-pair encoding of ASCII without an unknown token: other characters vanish."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>"], show_progress=False)
    backend.train_from_iterator([TEXT.encode("ascii", "ignore").decode()], trainer)
    return backend


KINDS = {make.__name__: make for make in (gpt2, roberta, qwen, llama, unigram, bert, dropping)}


@functools.cache
def subwords(kind: str) -> Subwords:
    """One of `KINDS`."""
    return Subwords(KINDS[kind](), name=kind)
