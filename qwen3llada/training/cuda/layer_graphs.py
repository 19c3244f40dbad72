"""CUDA graphs of the decoder layers' forward and backward passes, for training on a GPU.

A layer of a compiled Qwen3 launches some eighty kernels a step, and launching them one by one takes the host longer
than a small batch takes the GPU. A graph launches the same kernels on the same memory at once, with the same results.

Each layer has its own pair of graphs, so that autograd goes from layer to layer as ever, and what hangs on it (DDP's
reductions, which overlap with the backward pass of earlier layers) keeps working. The graphs of a shape hand their
outputs to each other without copies: a layer's output is the memory that the next layer's graph reads.
"""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from qwen3llada.training.cuda.gradient_sum import GradientSum
from qwen3llada.training.cuda.graph_recorder import Inputs, Pair, Recorded, Recorder, Shape

# A shape is recorded when it comes for this time: all is compiled then, and the libraries have what they keep.
RECORDED_AT = 3
MOST_SHAPES = 8  # each takes two elements for each token, layer and hidden dimension; the rest they share


class LayerGraphs:
    """Replaces `forward` of each layer in `layers`, in place, and decides for each pass whether it is replayed.

    Passes without gradients, masks that are no tensors, and shapes that have not come often are run as before. So is a
    second forward pass before the first one's backward pass, whose memory it would overwrite. Parameters must keep
    their memory (optimisers and `load_state_dict` do) and be trained, all of them.

    Args:
        layers: of the body, in the order in which they are called, without dropout.
        reduction: which tells where the graphs write the parameters' gradients; nothing is recorded before it knows.
            None lets them have memory of their own.
    """

    def __init__(self, layers: nn.ModuleList, reduction: GradientSum | None = None):
        self.recorder, self.reduction = Recorder(), reduction
        self.shapes: dict[Any, Shape] = {}
        self.replayed: Shape | None = None  # in the pass that is under way
        self.awaits_backward = False
        self._seen: Counter[Any] = Counter()
        self.layers = [GraphedLayer(number, layer, self) for number, layer in enumerate(layers)]
        for layer, graphed in zip(layers, self.layers, strict=True):
            layer.forward = graphed

    def begin(self, hidden: Tensor, inputs: Inputs) -> None:
        """Choose how the forward pass that starts with `hidden` is run."""
        self.replayed = None
        fits = hidden.requires_grad and (inputs.mask is None or isinstance(inputs.mask, Tensor))
        if not torch.is_grad_enabled() or not fits or self.awaits_backward:
            return
        key = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in (hidden, *inputs))
        self._seen[key] += 1
        shape = self.shapes.get(key)
        if shape is not None:
            for mine, given in zip(shape.inputs, inputs, strict=True):
                if mine is not None:
                    mine.copy_(given)
        elif self._seen[key] < RECORDED_AT or len(self.shapes) == MOST_SHAPES or not self._places_known():
            self._make_room(hidden.numel())
            return
        else:
            torch.cuda.empty_cache()  # of what the same pass took without graphs
            shape = self.shapes[key] = Shape(inputs)
        self._keep_gradients()
        self.replayed, self.awaits_backward = shape, True

    def release(self) -> None:
        """Forget all graphs and their memory. The next pass of a shape that has come often is recorded anew."""
        self.shapes.clear()
        for layer in self.layers:
            layer.gradients = None
        self.recorder = Recorder()
        torch.cuda.empty_cache()

    def _places_known(self) -> bool:
        return self.reduction is None or bool(self.reduction.places)

    def _make_room(self, elements: int) -> None:
        """Release the graphs' memory, which nothing else can use, if a pass of another shape may not fit beside it."""
        if not self.shapes:
            return
        pool, largest = self.recorder.pool(), max(size.numel() for (size, _), *_ in self.shapes)
        unused = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if unused - pool.idle < pool.total * elements / largest:
            self.release()

    def _keep_gradients(self) -> None:
        """Where an earlier micro-batch left its gradients in the graphs' memory, copy them before it is overwritten."""
        for layer in self.layers:
            for parameter, gradient in zip(layer.parameters, layer.gradients or (), strict=False):
                if parameter.grad is not None and parameter.grad.data_ptr() == gradient.data_ptr():
                    parameter.grad = parameter.grad.clone()


class GraphedLayer:
    """`forward` of one decoder layer."""

    def __init__(self, number: int, layer: nn.Module, graphs: LayerGraphs):
        self.number, self.layer, self.graphs = number, layer, graphs
        self.plain = layer.forward
        self.names = [name for name, _ in layer.named_parameters()]
        self.parameters = list(layer.parameters())
        self.gradients: list[Tensor] | None = None  # of the parameters, one memory for all shapes

    def __call__(self, hidden_states: Tensor, attention_mask: Any, position_embeddings: Any, **rest: Any) -> Tensor:
        """As the layer's own: [B, L, D] to [B, L, D]."""
        graphs = self.graphs
        if self.number == 0 and not graphs.recorder.recording:
            graphs.begin(hidden_states, Inputs(position_embeddings[0], position_embeddings[1], attention_mask))
        if graphs.recorder.recording or graphs.replayed is None:
            return self.plain(
                hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **rest
            )
        return _Replay.apply(self, graphs.replayed, hidden_states, rest, *self.parameters)

    def replay_forward(self, shape: Shape, hidden: Tensor, rest: dict[str, Any]) -> Tensor:
        """The output for `hidden`, in memory that the next replay overwrites."""
        if self.number not in shape.pairs:
            shape.pairs[self.number] = self._record_forward(shape, hidden, rest)
        return shape.pairs[self.number].forward.replay(hidden)

    def replay_backward(self, shape: Shape, grad_output: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the input and of the parameters, in memory that the next replay overwrites."""
        if self.number == 0:
            self.graphs.awaits_backward = False
        pair = shape.pairs[self.number]
        if pair.backward is None:
            pair.backward = self._record_backward(shape, pair, grad_output)
        grad_hidden = pair.backward.replay(grad_output)
        return grad_hidden, *(gradient.detach() for gradient in self.gradients or ())

    def _record_forward(self, shape: Shape, hidden: Tensor, rest: dict[str, Any]) -> Pair:
        before = shape.pairs.get(self.number - 1)
        handed_over = before is not None and hidden.data_ptr() == before.forward.result.data_ptr()
        given = (hidden if handed_over else hidden.clone()).detach().requires_grad_()
        # The real parameters' gradients are accumulated on the stream of the step, which a capture may not touch.
        parameters = [nn.Parameter(parameter.detach()) for parameter in self.parameters]
        seen = {"attention_mask": shape.inputs.mask, "position_embeddings": shape.inputs[:2]} | rest

        def work() -> Tensor:
            with torch.enable_grad():
                return functional_call(self.layer, dict(zip(self.names, parameters, strict=True)), (given,), seen)

        graph, output = self.graphs.recorder.record(work)
        return Pair(Recorded(graph, given, output), parameters)

    def _record_backward(self, shape: Shape, pair: Pair, grad_output: Tensor) -> Recorded:
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
        return Recorded(graph, given, grad_hidden)


class _Replay(torch.autograd.Function):
    """One layer. The parameters are inputs so that autograd delivers their gradients to them."""

    @staticmethod
    def forward(ctx, layer, shape, hidden, rest, *parameters):
        ctx.layer, ctx.shape = layer, shape
        return layer.replay_forward(shape, hidden, rest)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        grad_hidden, *gradients = ctx.layer.replay_backward(ctx.shape, grad_output)
        return None, None, grad_hidden, None, *gradients
