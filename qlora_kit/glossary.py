"""The words of the notebooks as data: one meaning each, in all of them.

The word table at the head of a notebook takes its rows from here, and a test compares them. A table
may add to a meaning what holds in that notebook, after it.
"""

WORDS = {
    # the page
    "notebook": "a page of text and code, such as this one",
    "cell": "a piece of it; a cell of code runs when you press Shift and Enter in it",
    "kernel": "the Python behind a notebook; it remembers what the cells have done until you "
    "restart it",
    "GPU": "a processor that multiplies many numbers at once; a CPU is every computer's ordinary "
    "one",
    "hub": "huggingface.co, where models are published",
    "access token": "a kind of password with which a program gets what your account may have",
    # a model
    "token": "a piece of text, the unit that the model reads and writes",
    "weights": "the model's numbers",
    "parameter": "a number of the model that training could change",
    "layer": "one of the parts, all alike, that a model is a stack of; it has seven large matrices",
    "matrix, linear layer": "turns numbers x into numbers y = W x; the numbers in W are weights",
    "embedding": "the table with a vector for each token, at the model's entrance",
    "head": "the part at the exit that turns a vector into a score for each token",
    "tied": "head and embedding are one table",
    "norm": "a small part that keeps vectors at about the same length",
    "residual stream": "the vector of each token that goes from layer to layer; each layer adds "
    "something to it",
    "logits": "the head's scores: one for each token of the vocabulary, at each position",
    "module": "a part of a model, such as a layer; it has a name, and may hold other modules",
    "config": "the settings with which something is loaded or built",
    "chat template": "how the turns of a chat are written as one text",
    "stop token": "the token at which an answer ends",
    # numbers
    "bit, byte": "a 0 or 1; eight of them",
    "dtype": "the format of a number",
    "quantise": "store numbers in fewer bits",
    "dequantise": "from 4-bit codes back to ordinary numbers, as well as it goes",
    "code": "the number of a level; with 4 bits it runs from 0 to 15",
    "level": "what a code stands for, between -1 and 1",
    "code book": "the list of the levels",
    "block": "64 weights in a row that share a scale",
    "scale, absmax": "the largest magnitude in a block: a level times this is a weight",
    "relative RMSE": "the size of the error beside the size of the weights; 0.1 is an error of a "
    "tenth",
    "MiB, GiB": "2²⁰ and 2³⁰ bytes, as GPUs count; a GB is 10⁹ bytes",
    "float32, bfloat16, float16": "formats of 4, 2 and 2 bytes",
    "update": "what a training step adds to a number",
    "NaN": "*not a number*: what comes out of zero by zero, or of infinity less infinity",
    "underflow": "a number too small for its format becomes zero",
    # training
    "fine-tune": "train a model that is there already on examples of your own",
    "base": "the model before training",
    "frozen": "never changed by training",
    "adapter": "small matrices beside the base's",
    "rank": "how narrow an adapter is: A has that many rows, B that many columns",
    "r, alpha, scaling": "the adapter's rank; a knob; alpha / r, what the adapter's output is "
    "multiplied by",
    "loss": "how wrong the output is",
    "filing": "what the model says first: the label (category and priority) and the names of facts",
    "gradient": "how the loss changes with each weight",
    "optimizer": "what moves the weights, a little at a time, to where the loss is smaller",
    "AdamW, eps": "the usual optimizer; a tiny number that it adds, so that it never divides by "
    "zero",
    "loss scale": "a factor on the loss, and so on every gradient, against underflow",
    "optimizer state": "what Adam remembers of earlier gradients: two numbers for each trained "
    "parameter",
    "forward, backward": "computing the output y from the input x; computing the gradients from y "
    "back to x",
    "autograd": "the part of PyTorch that runs the backward pass",
    "activation": "what a layer has computed, kept until the backward pass",
    "activation checkpointing": "keep only what enters each layer; compute the rest a second time",
    "step, batch": "one update of the adapter, and the rows that it is computed from",
    "batch x sequence": "rows in a step x tokens in a row; their product is the step's tokens",
    "learning rate": "how large an update is",
    "seed": "a number that fixes random choices",
    "held-out": "never trained on",
    "target modules": "the modules that get an adapter",
    "hook": "a function of ours that PyTorch calls whenever a module has run",
    "meta device": "where tensors have a shape, but no memory and no numbers",
    "peak": "the most bytes that are there at one moment; it decides whether a GPU is large enough",
}
