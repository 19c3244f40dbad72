"""CUDA graphs of the decoder layers' forward and backward passes, for training on a GPU.

A layer of a compiled Qwen3 launches about eighty kernels a step. For small batches the host takes longer to launch them
than the GPU takes to run them. A graph launches the same kernels on the same memory in one call, with the same results.

Each layer has its own forward and backward graph. Autograd still goes from layer to layer, so its hooks keep working:
DDP's reductions overlap with the backward pass of earlier layers. Graphs of one batch shape pass activations without
copies: the output memory of a layer is the input memory of the next layer's graph.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.attention.flex_attention import BlockMask

from qwen3llada.training.cuda.gradient_sum import GradientSum
from qwen3llada.training.cuda.graph_recorder import GraphRecorder, GraphShape, Inputs, LayerGraph, Pair, ReplayedPass

# Capture a shape on its third occurrence: compilation and library workspaces are done by then.
RECORDED_AT = 3
# Each shape keeps two elements per token, layer and hidden dimension. All other graph memory is shared.
MOST_SHAPES = 8


class LayerGraphs:
    """Replaces `forward` of each layer in `layers`, in place. Each pass runs by graphs or as before.

    These run without graphs: passes without gradients, shapes that have not come often, and layers with a BlockMask
    that was built for one batch. So does a second forward pass before the first one's backward pass, because it would
    overwrite activations that this backward pass needs. Parameters must all be trained and must keep their memory,
    which optimisers and `load_state_dict` guarantee.

    Layers may have different masks, as they do under layered attention policies.

    A pass that gets no backward pass blocks the graphs only while something refers to its autograd graph, such as its
    output or the frames of an exception. A second backward pass through the same layer (`retain_graph=True`) is an
    error: the first one has overwritten the activations.

    Args:
        layers: decoder layers in the order in which they are called, without dropout.
        reduction: says where graphs write parameter gradients. No graph is captured before it knows. If None, the
            gradients get memory of their own.
    """

    def __init__(self, layers: nn.ModuleList, reduction: GradientSum | None = None):
        self.recorder, self.reduction = GraphRecorder(), reduction
        self.shapes: dict[Any, GraphShape] = {}
        self.replayed: ReplayedPass | None = None  # the forward pass that is under way, if it runs by graphs
        self._last: Callable[[], ReplayedPass | None] = lambda: None  # a weak reference to the last one that did
        self._seen: Counter[Any] = Counter()
        # One BlockMask object serves all batches of a shape. One that was built for a batch does not come again.
        self._seen_with: WeakKeyDictionary[BlockMask, Counter[Any]] = WeakKeyDictionary()
        self.layers = [GraphedLayer(number, layer, self) for number, layer in enumerate(layers)]
        for layer, graphed in zip(layers, self.layers, strict=True):
            layer.forward = graphed

    def begin(self, hidden: Tensor, inputs: Inputs) -> None:
        """Choose graphs or plain layers for the forward pass whose first layer receives `hidden` and `inputs`."""
        self.replayed = None  # from here on, nothing but autograd's graph keeps the last pass alive
        if not torch.is_grad_enabled() or not hidden.requires_grad or self.awaits_backward:
            return
        key, seen = self._key(hidden, inputs)
        seen[key] += 1
        shape = self.shapes.get(key)
        if shape is not None:
            shape.begin_pass(inputs.cos, inputs.sin)
        elif seen[key] < RECORDED_AT or len(self.shapes) == MOST_SHAPES or not self._places_known():
            self._make_room(hidden.numel())
            return
        else:
            torch.cuda.empty_cache()  # gives back what passes without graphs have cached
            shape = self.shapes[key] = GraphShape(inputs.cos, inputs.sin)
        self._keep_gradients()
        self.replayed = ReplayedPass(shape)
        self._last = ref(self.replayed)

    @property
    def awaits_backward(self) -> bool:
        """Whether a pass that ran by graphs may still be differentiated."""
        last = self._last()
        return last is not None and not last.is_over

    def _key(self, hidden: Tensor, inputs: Inputs) -> tuple[Any, Counter[Any]]:
        """What tells the graphs of this pass from others, and the counter of passes in which such keys are counted."""
        given = (x for x in (hidden, *inputs) if not isinstance(x, BlockMask))
        form = tuple(None if x is None else (x.shape, x.dtype) for x in given)
        if not isinstance(inputs.mask, BlockMask):
            return form, self._seen
        # The graphs of this key keep the mask alive, so no other mask gets its id.
        return (*form, id(inputs.mask)), self._seen_with.setdefault(inputs.mask, Counter())

    def release(self) -> None:
        """Drop all graphs and their memory. The next pass of a shape that has come often is captured anew."""
        self.shapes.clear()
        for layer in self.layers:
            layer.gradients = None
        self.recorder = GraphRecorder()
        torch.cuda.empty_cache()

    def _places_known(self) -> bool:
        return self.reduction is None or bool(self.reduction.places)

    def _make_room(self, elements: int) -> None:
        """Release the graphs, whose pool nothing else can use, if a pass of another shape may not fit beside it."""
        if not self.shapes:
            return
        pool, largest = self.recorder.pool(), max(size.numel() for (size, _), *_ in self.shapes)
        unused = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if unused - pool.idle < pool.total * elements / largest:
            self.release()

    def _keep_gradients(self) -> None:
        """Copy gradients that an earlier micro-batch left in the graphs' memory, before a replay overwrites them."""
        for layer in self.layers:
            for parameter, gradient in zip(layer.parameters, layer.gradients or (), strict=False):
                if parameter.grad is not None and parameter.grad.data_ptr() == gradient.data_ptr():
                    parameter.grad = parameter.grad.clone()


class GraphedLayer:
    """`forward` of one decoder layer, by graph or plain."""

    def __init__(self, number: int, layer: nn.Module, graphs: LayerGraphs):
        self.number, self.layer, self.graphs = number, layer, graphs
        self.plain = layer.forward
        self.names = [name for name, _ in layer.named_parameters()]
        self.parameters = list(layer.parameters())
        self.gradients: list[Tensor] | None = None  # of the parameters; static memory, shared by all shapes

    def __call__(self, hidden_states: Tensor, attention_mask: Any, position_embeddings: Any, **rest: Any) -> Tensor:
        """Same as the layer's own forward: [B, L, D] to [B, L, D]."""
        graphs = self.graphs
        if self.number == 0 and not graphs.recorder.recording:
            graphs.begin(hidden_states, Inputs(position_embeddings[0], position_embeddings[1], attention_mask))
        replayed = graphs.replayed
        mask = rest["kept_mask"] if self._takes_kept_mask(rest) else attention_mask
        if graphs.recorder.recording or replayed is None or not replayed.shape.take_mask(self.number, mask):
            return self.plain(
                hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **rest
            )
        return _Replay.apply(self, replayed, hidden_states, rest, *self.parameters)

    def _takes_kept_mask(self, rest: dict[str, Any]) -> bool:
        """Whether this is the last layer and computes some columns alone (`objective.last_layer`)."""
        return rest.get("kept") is not None and self.number == len(self.graphs.layers) - 1

    def replay_forward(self, shape: GraphShape, hidden: Tensor, rest: dict[str, Any]) -> Tensor:
        """The output for `hidden`, in memory that the next replay overwrites."""
        if self.number not in shape.pairs:
            shape.pairs[self.number] = self._record_forward(shape, hidden, rest)
        return shape.pairs[self.number].forward.replay(hidden)

    def replay_backward(self, shape: GraphShape, grad_output: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the input and of the parameters, in memory that the next replay overwrites."""
        pair = shape.pairs[self.number]
        if pair.backward is None:
            pair.backward = self._record_backward(shape, pair, grad_output)
        grad_hidden = pair.backward.replay(grad_output)
        return grad_hidden, *(gradient.detach() for gradient in self.gradients or ())

    def _record_forward(self, shape: GraphShape, hidden: Tensor, rest: dict[str, Any]) -> Pair:
        before = shape.pairs.get(self.number - 1)
        handed_over = before is not None and hidden.data_ptr() == before.forward.result.data_ptr()
        given = (hidden if handed_over else hidden.clone()).detach().requires_grad_()
        # Autograd accumulates the real parameters' gradients on the step's stream, which a capture must not touch.
        # `data`: an optimiser step before the backward pass is captured must not count as a change in place.
        parameters = [nn.Parameter(parameter.data) for parameter in self.parameters]
        seen = {"attention_mask": None, "position_embeddings": tuple(map(_untracked, shape.rotary))} | rest
        own_mask = _untracked(shape.masks[self.number].static)
        seen["kept_mask" if self._takes_kept_mask(rest) else "attention_mask"] = own_mask

        def work() -> Tensor:
            with torch.enable_grad():
                return functional_call(self.layer, dict(zip(self.names, parameters, strict=True)), (given,), seen)

        graph, output = self.graphs.recorder.record(work)
        return Pair(LayerGraph(graph, given, output), parameters)

    def _record_backward(self, shape: GraphShape, pair: Pair, grad_output: Tensor) -> LayerGraph:
        after = shape.pairs.get(self.number + 1)
        handed_over = after and after.backward and grad_output.data_ptr() == after.backward.result.data_ptr()
        given = grad_output.detach() if handed_over else grad_output.clone()
        reduction = self.graphs.reduction
        if reduction is not None:
            self.gradients = [reduction.places[parameter] for parameter in self.parameters]

        def work() -> tuple[Tensor, list[Tensor]]:
            inputs = (pair.forward.given, *pair.parameters)
            grad_hidden, *gradients = torch.autograd.grad(pair.forward.result, inputs, given)
            if self.gradients is None:
                return grad_hidden, gradients
            torch._foreach_copy_(self.gradients, gradients)
            return grad_hidden, self.gradients

        with nullcontext() if reduction is None else reduction.sparing_processors():
            graph, (grad_hidden, self.gradients) = self.graphs.recorder.record(work)
        pair.forward.result, pair.parameters = pair.forward.result.detach(), []
        return LayerGraph(graph, given, grad_hidden)


def _untracked(part: Any) -> Any:
    """The same memory, so that autograd does not see a later pass fill it before the backward pass is captured."""
    return part.data if isinstance(part, Tensor) else part


class _Replay(torch.autograd.Function):
    """Replay of one layer. The parameters are inputs so that autograd accumulates their gradients."""

    @staticmethod
    def forward(ctx, layer, replayed, hidden, rest, *parameters):
        ctx.layer, ctx.replayed = layer, replayed
        return layer.replay_forward(replayed.shape, hidden, rest)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        ctx.replayed.begin_backward(ctx.layer.number)
        grad_hidden, *gradients = ctx.layer.replay_backward(ctx.replayed.shape, grad_output)
        return None, None, grad_hidden, None, *gradients
