"""Tasks of KerasHub with their tokenizers, at toy size, and layers of Keras's own that hold files."""

import io

import keras
import numpy as np

TEXTS = ["The quick brown fox.", "the fox"]
SPECIAL = {
    **dict(zip(("pad_id", "bos_id", "eos_id", "unk_id"), range(4), strict=True)),
    **{f"{name}_piece": f"<{name}>" for name in ("pad", "bos", "eos", "unk")},
}


def bert(hub, words=("the", "quick", "brown", "fox", ".")):
    """WordPiece."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = hub.models.BertTokenizer(vocabulary=vocabulary, lowercase=True)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 4, "intermediate_dim": 8}
    backbone = hub.models.BertBackbone(vocabulary_size=10, max_sequence_length=8, **sizes)
    preprocessor = hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)
    return hub.models.BertTextClassifier(backbone=backbone, preprocessor=preprocessor, num_classes=2)


def gpt2(hub):
    """Pairs of bytes."""
    merges = ["t h", "th e", "q u", "qu i", "qui c", "quic k", "Ġ quick"]
    tokens = ["<|endoftext|>", *"Ġabcdefghiklmnopqrtuwx.T", *(merge.replace(" ", "") for merge in merges)]
    tokenizer = hub.models.GPT2Tokenizer({token: i for i, token in enumerate(tokens)}, merges)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 4, "intermediate_dim": 8}
    backbone = hub.models.GPT2Backbone(vocabulary_size=len(tokens), max_sequence_length=8, **sizes)
    preprocessor = hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=8)
    task = hub.models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)
    task.compile(sampler="greedy")
    return task


def gemma(hub):
    """SentencePiece."""
    import sentencepiece

    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox", "the fox is round"]),
        model_writer=proto,
        vocab_size=26,
        model_type="WORD",
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>"],
        hard_vocab_limit=False,
        minloglevel=2,
        **SPECIAL,
    )
    tokenizer = hub.models.GemmaTokenizer(proto=proto.getvalue())
    sizes = {"num_layers": 1, "num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    backbone = hub.models.GemmaBackbone(
        tokenizer.vocabulary_size(), hidden_dim=8, intermediate_dim=16, **sizes
    )
    preprocessor = hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=8)
    task = hub.models.GemmaCausalLM(backbone=backbone, preprocessor=preprocessor)
    task.compile(sampler="greedy")
    return task


TASKS = {"bert": bert, "gpt2": gpt2, "gemma": gemma}


def answers(task):
    """What a task makes of text: classes, or more text."""
    if hasattr(task, "generate"):
        return task.generate("the quick", max_length=8)
    return task.predict(TEXTS, verbose=0).tolist()


# --- layers of Keras's own, which need TensorFlow


def strings():
    layer = keras.layers.StringLookup()
    layer.adapt(np.array(["a", "b", "b"]))
    return layer, np.array([["b", "z"]])


def integers():
    layer = keras.layers.IntegerLookup()
    layer.adapt(np.array([7, 9, 9]))
    return layer, np.array([[9, 8]])


def text():
    layer = keras.layers.TextVectorization(output_sequence_length=3)
    layer.adapt(np.array(["the quick fox", "the fox"]))
    return layer, np.array([["quick the"]])


def given():
    """A vocabulary that is in the config, and in no file."""
    return keras.layers.StringLookup(vocabulary=["a", "b"]), np.array([["b", "a"]])


LOOKUPS = {"StringLookup": strings, "IntegerLookup": integers, "TextVectorization": text, "given": given}


@keras.saving.register_keras_serializable("lookups")
class Scored(keras.Model):
    """A model that holds a layer beside its call."""

    def __init__(self, lookup, **options):
        super().__init__(**options)
        self.lookup, self.embedding = lookup, keras.layers.Embedding(6, 2)

    def call(self, ids):
        return self.embedding(ids)

    def get_config(self):
        return {"lookup": keras.saving.serialize_keras_object(self.lookup), "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["lookup"]), name=config["name"])
