"""Dense models: parameter counts by part, and attention FLOPs."""

from configs.schema.models import ModelSection
from configs.schema.models.bigram import BigramSection
from configs.schema.models.encoder import EncoderSection
from configs.schema.models.encoder_decoder import EncoderDecoderSection
from configs.schema.models.gpt import GptSection
from configs.schema.models.transformer import TransformerSection
from training.estimate.counts import Parameters


def parameters(model: ModelSection, vocab_size: int) -> Parameters:
    """Count parameters by part, for an embedding and head with ``vocab_size`` rows."""
    match model:
        case BigramSection():
            table = vocab_size * vocab_size
            return Parameters({"embedding": table}, {"embedding": 0}, table)
        case GptSection() | EncoderSection():
            return _stack(model, vocab_size, model.tie_word_embeddings)
        case EncoderDecoderSection():
            return _encoder_decoder(model, vocab_size)
    raise TypeError(f"{type(model).__name__} is not a dense family")


def _stack(model: GptSection | EncoderSection, vocab_size: int, tied: bool) -> Parameters:
    """Count the parameters of one stack of layers between an embedding and a head."""
    layers, matrix = model.num_hidden_layers, vocab_size * model.hidden_size
    # A post-norm stack already ends with a norm.
    final = 1 if isinstance(model, GptSection) or model.norm_first else 0
    rms = isinstance(model, GptSection) and model.norm == "rms"
    norms, norm_biases = _norms(model, 2 * layers + final, rms)
    by_part = {
        "embedding": 0 if tied else matrix,
        "positions": _positions(model),
        "attention": layers * 4 * model.hidden_size**2,
        "feed-forward": layers * _feed_forward(model),
        "norms": norms,
        "biases": norm_biases + layers * (_attention_biases(model) + _feed_forward_biases(model)),
        "head": matrix,
    }
    return _counts(by_part, ("embedding", "positions"), matrix * (1 if tied else 2) + _positions(model))


def _encoder_decoder(model: EncoderDecoderSection, vocab_size: int) -> Parameters:
    """Count the parameters of an encoder-decoder. Shared embeddings and a tied head are counted only once."""
    encoder, decoder = model.num_hidden_layers, model.depth_of_decoder
    matrix, tables = vocab_size * model.hidden_size, 1 if model.share_embeddings else 2
    final = 2 if model.norm_first else 0
    norms, norm_biases = _norms(model, 2 * encoder + 3 * decoder + final)
    attentions = encoder + 2 * decoder
    tied = 1 if model.tie_word_embeddings else 0
    positions = _positions(model) * 2
    by_part = {
        # The head is a separate table, or tied to one of the embeddings.
        "embeddings": (tables - tied) * matrix,
        "positions": positions,
        "encoder's attention": encoder * 4 * model.hidden_size**2,
        "decoder's attention": decoder * 4 * model.hidden_size**2,
        "cross-attention": decoder * 4 * model.hidden_size**2,
        "feed-forward": (encoder + decoder) * _feed_forward(model),
        "norms": norms,
        "biases": norm_biases
        + attentions * _attention_biases(model)
        + (encoder + decoder) * _feed_forward_biases(model),
        "head": matrix,
    }
    return _counts(by_part, ("embeddings", "positions"), (tables - tied + 1) * matrix + positions)


def _counts(by_part: dict[str, int], looked_up: tuple[str, ...], tables: int) -> Parameters:
    return Parameters(by_part, {**by_part, **dict.fromkeys(looked_up, 0)}, tables)


def matrix_parameters(model: ModelSection, vocab_size: int) -> float:
    """Count active matrix parameters, weighted by how often they are used per token."""
    counts = parameters(model, vocab_size)
    matrices = counts.active - counts.by_part.get("norms", 0) - counts.by_part.get("biases", 0)
    if isinstance(model, EncoderDecoderSection):
        # Cross-attention projects keys and values once per pooled position, i.e. once for several source tokens.
        projections = model.depth_of_decoder * 2 * model.hidden_size**2
        return matrices - projections * (1 - 1 / model.cross_downsample)
    return matrices


def attention_flops(model: ModelSection, context: int) -> float:
    """Return attention's forward plus backward FLOPs per token, for the average number of visible positions."""
    if not isinstance(model, TransformerSection):
        return 0.0
    per_position = 3.0 * 2.0 * 2.0 * model.hidden_size
    looks_ahead = model.task != "language_modeling"
    layers = model.num_hidden_layers * _visible(context, model.window, looks_ahead)
    if isinstance(model, EncoderDecoderSection):
        kept = -(-context // model.cross_downsample)
        layers += model.depth_of_decoder * (_visible(context, model.window, False) + kept)
    return per_position * layers


def _visible(context: int, window: int | None, looks_ahead: bool) -> float:
    """Return the number of positions that a token attends to, averaged over a context of ``context`` tokens."""
    reach = min(window or context, context)
    before = (reach * (reach + 1) / 2 + (context - reach) * reach) / context
    return 2 * before - 1 if looks_ahead else before


def _positions(model: TransformerSection) -> int:
    return model.max_position_embeddings * model.hidden_size if model.positions == "learned" else 0


def _feed_forward(model: TransformerSection) -> int:
    """Count the parameters in one layer's feed-forward matrices."""
    return (3 if model.activation == "swiglu" else 2) * model.hidden_size * model.width


def _feed_forward_biases(model: TransformerSection) -> int:
    if not model.bias:
        return 0
    return (2 if model.activation == "swiglu" else 1) * model.width + model.hidden_size


def _attention_biases(model: TransformerSection) -> int:
    return 4 * model.hidden_size if model.bias else 0


def _norms(model: TransformerSection, count: int, rms: bool = False) -> tuple[int, int]:
    """Return the number of weights and the number of biases in ``count`` norms."""
    return count * model.hidden_size, count * model.hidden_size if model.bias and not rms else 0
