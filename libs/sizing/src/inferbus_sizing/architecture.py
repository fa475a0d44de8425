"""What a model is made of: its parameters by part, the KV cache of a token, the arithmetic of a token."""

from dataclasses import dataclass

NORMS_A_LAYER = 2


@dataclass(frozen=True, slots=True)
class Attention:
    """Of one layer. ``kv_rank`` above 0: multi-head latent attention (DeepSeek), where a token leaves
    ``kv_rank + rope`` numbers behind and not two vectors a head."""

    heads: int
    kv_heads: int
    head_size: int
    bias: bool = False
    output_bias: bool = False
    query_rank: int = 0
    kv_rank: int = 0
    nope: int = 0
    rope: int = 0
    value_size: int = 0

    def parameters(self, hidden: int) -> int:
        if self.kv_rank:
            query = self.heads * (self.nope + self.rope)
            down = hidden * self.query_rank + self.query_rank * query if self.query_rank else hidden * query
            latent = hidden * (self.kv_rank + self.rope) + self.kv_rank * self.heads * (self.nope + self.value_size)
            return down + latent + self.heads * self.value_size * hidden
        query, kv = self.heads * self.head_size, 2 * self.kv_heads * self.head_size
        biases = (query + kv if self.bias else 0) + (hidden if self.output_bias else 0)
        return hidden * (query + kv) + query * hidden + biases

    @property
    def kv_elements(self) -> int:
        """That one token leaves in the KV cache of one layer."""
        return self.kv_rank + self.rope if self.kv_rank else 2 * self.kv_heads * self.head_size

    @property
    def decode_flops(self) -> int:
        """Of one new token for each token that it looks back at, in one layer: scores and the weighted sum. Latent
        attention decodes in the latent space, where a head is as wide as what is kept."""
        if self.kv_rank:
            return 2 * self.heads * (2 * self.kv_rank + self.rope)
        return 4 * self.heads * self.head_size

    @property
    def prefill_flops(self) -> int:
        """The same of a prompt's token, where latent attention works with its full heads."""
        return 2 * self.heads * (self.nope + self.rope + self.value_size) if self.kv_rank else self.decode_flops


@dataclass(frozen=True, slots=True)
class Experts:
    """Of one mixture layer: ``count`` experts of which a token uses ``active``, and what all tokens go through."""

    count: int
    active: int
    size: int
    shared_size: int = 0
    bias: bool = False

    def expert(self, hidden: int) -> int:
        return 3 * hidden * self.size + (2 * self.size + hidden if self.bias else 0)

    def router(self, hidden: int) -> int:
        return hidden * self.count + (self.count if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder. ``windowed`` of its ``layers`` look back at most ``window`` tokens; ``mixture`` of them have experts
    and the others a dense block of ``dense_size``."""

    name: str
    hidden: int
    layers: int
    vocabulary: int
    attention: Attention
    dense_size: int
    context_limit: int
    tied: bool = False
    experts: Experts | None = None
    mixture: int = 0
    windowed: int = 0
    window: int = 0
    gated: bool = True
    """Three matrices a dense block, as nearly all have; older models have two."""
    native: str = "bf16"
    """The precision that it is published in."""

    # --- parameters ---

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def head_parameters(self) -> int:
        """The output layer's own, which are the embedding's where both are tied."""
        return 0 if self.tied else self.embedding_parameters

    @property
    def attention_parameters(self) -> int:
        return self.layers * self.attention.parameters(self.hidden)

    @property
    def dense_parameters(self) -> int:
        """Of the feed-forward blocks that every token goes through: dense layers and shared experts."""
        shared = self.mixture * 3 * self.hidden * self.experts.shared_size if self.experts else 0
        matrices = 3 if self.gated else 2
        return (self.layers - self.mixture) * matrices * self.hidden * self.dense_size + shared

    @property
    def expert_parameters(self) -> int:
        return self.mixture * self.experts.count * self.experts.expert(self.hidden) if self.experts else 0

    @property
    def small_parameters(self) -> int:
        """Norms and routers, which no precision narrows."""
        routers = self.mixture * self.experts.router(self.hidden) if self.experts else 0
        return (NORMS_A_LAYER * self.layers + 1) * self.hidden + routers

    @property
    def parameters(self) -> int:
        return (
            self.embedding_parameters + self.head_parameters + self.attention_parameters + self.dense_parameters
            + self.expert_parameters + self.small_parameters
        )  # fmt: skip

    @property
    def active_expert_parameters(self) -> int:
        if self.experts is None:
            return 0
        return self.mixture * self.experts.active * self.experts.expert(self.hidden)

    @property
    def active_parameters(self) -> int:
        """That one token uses; its row of the embedding counts with the whole table, as model cards do."""
        return self.parameters - self.expert_parameters + self.active_expert_parameters

    # --- the KV cache ---

    @property
    def kv_elements_per_token(self) -> int:
        """Of one token in all layers, as long as no window has passed it."""
        return self.layers * self.attention.kv_elements

    def kv_elements(self, tokens: float) -> float:
        """Of one sequence of ``tokens``: the layers with a window keep no more than that."""
        return self.attention.kv_elements * self.looked_back(tokens)

    def looked_back(self, tokens: float) -> float:
        """How many tokens one at the end of ``tokens`` looks back at, summed over the layers."""
        near = min(tokens, self.window) if self.window else tokens
        return (self.layers - self.windowed) * tokens + self.windowed * near

    # --- arithmetic ---

    def prefill_attention_flops(self, tokens: int) -> float:
        """Of a whole prompt: each token looks back at those before it, half of them on average."""
        full = tokens * tokens / 2
        near = tokens * tokens / 2 if not self.window or tokens <= self.window else tokens * self.window
        return self.attention.prefill_flops * ((self.layers - self.windowed) * full + self.windowed * near)

    def decode_attention_flops(self, context: float) -> float:
        """Of one new token at ``context``."""
        return self.attention.decode_flops * self.looked_back(context)
