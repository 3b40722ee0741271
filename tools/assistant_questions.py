"""What to ask a student, where the message of a check does not ask it."""

#: What is found in a message -> what the student sees, the mistake, and the question. These
#: mistakes can be made in any exercise. The first that is found counts, if the rest of the
#: message asks nothing.
ANY_EXERCISE = {
    r"changes its argument|changes an argument": (
        "it changes its argument",
        "the answer is written over what came in",
        "Who else holds this tensor when your function is done?",
    ),
    r"they have no gradient by": (
        "they have no gradient by …",
        "numbers left the graph: a list, `.item()`, `detach`, `no_grad`",
        "Which is the first line whose result has no `grad_fn`?",
    ),
    r"returned None(: is the `return` missing\?)?|^\W*is the `return` missing\?$": (
        "it returned None: is the `return` missing?",
        "the last line computes and does not return",
        "What does your function hand to whoever calls it?",
    ),
    r"(returned shape|… shape …; expected|expected \[).*?(Which axis was summed over.*)?$": (
        "it returned shape …; expected …",
        "an axis summed over or kept that should not be, or two of them exchanged",
        "Read me the expected shape: which axis is which? Which of them is yours?",
    ),
    r"your code raised|raised \w+Error|selected index|view size|shapes cannot be"
    r"|there is no key": (
        "your code raised …",
        "the code suits the example and not the edge cases of the check",
        "On which inputs? Call your function with them in a cell of your own. "
        "What is different from the example?",
    ),
    r"in a way that this check does not know": (
        "the numbers differ, in a way that this check does not know",
        "a mistake that nobody has foreseen, or two at once",
        "Take the smallest input that the message shows. What do you get by hand, "
        "and at which line do you part?",
    ),
    r"Are the parts in the right order\?": (
        "Are the parts in the right order?",
        "two results are exchanged on their way out",
        "In which order does the docstring name what you return?",
    ),
    r"expected (an? |two |\d tensors|booleans|floating|True or False|one of)"
    r"|expected the (labels|ids|first)"
    r"|returned (an? \w+|int64|float32)": (
        "it returned …; expected …",
        "the right idea in another type: a list for a tensor, numbers for booleans, "
        "one result of two",
        "Which type does the docstring promise? Print the type of yours.",
    ),
    r"an input is not what it was.*": (
        "an input is not what it was before",
        "a kernel stores over what it was given",
        "Which pointer does your `tl.store` get, and whose memory is that?",
    ),
    r"an output that is not its own": (
        "a program writes an output that is not its own",
        "a store without a mask, or with another program's addresses",
        "Write down the addresses of program 0, and those of program 1. Do they share one?",
    ),
    r"is never written|nothing is stored": (
        "output … is never written",
        "a missing or too small store, or a grid with too few programs",
        "How many programs are there, and which outputs does the last one own?",
    ),
    r"two programs write to the same.*": (
        "two programs write to the same place",
        "a race: partial sums added up in one place",
        "Programs run at once on a GPU. What is left in that place if both read before "
        "either writes?",
    ),
}

#: For each exercise, and each function in it: the question that goes a step back. It is asked
#: where the message of a check asks none, or its question does not help.
ASK = {
    "1.1": {
        "boxcar_regression": (
            "Read me row 3 of your weights: which keys are in it, and what does it sum to?"
        ),
    },
    "1.2": {
        "gaussian_weights": (
            "For query 0, keys 0 and 4 and width 2: which two weights do you find by hand, "
            "and which does your function print?"
        ),
        "narrow_limit": (
            "Print the weights for query 0, keys -5, 1 and 3 and width 0.1: what does that "
            "row make of the values 10, 60 and 20?"
        ),
        "wide_limit": (
            "Print the weights for query 0, keys -5, 1 and 3 and width 100: what does that "
            "row make of the values 10, 60 and 20?"
        ),
    },
    "1.3": {
        "held_out_error": (
            "Read me row 3 of your mask: who is hidden, and what do the weights of the rest sum to?"
        ),
    },
    "1.4": {
        "width_slope": (
            "What is the derivative of one kernel value, and where in the fraction does it stand?"
        ),
    },
    "1.5": {
        "scaled_distance_squared": (
            "For one query (0, 0), one key (4, -3) and widths 2 and 3: which number do you "
            "find by hand, and what does your function return?"
        ),
        "repaired_widths": (
            "Two points differ by 0.3 in the first coordinate and by 3 in a noise "
            "coordinate: with your widths, how much does each add to the squared distance?"
        ),
    },
    "1.6": {
        "top_k_weights": (
            "For one query with five keys and k = 2, which entries of the row are not zero?"
        ),
    },
    "1.7": {
        "gaussian_stream_kernel": (
            "The last tile has 16 lanes and 8 keys. What do the other 8 lanes add to each sum?"
        ),
    },
    "2.1": {
        "attend": "Whose attention is it: over which index does one query's row run?",
    },
    "2.2": {
        "softmax_allowed": (
            "What does your code return for a row in which nothing is allowed, and why?"
        ),
    },
    "2.3": {
        "short_scores": (
            "Take query 2, keys 3 and 5, width 2 (d = 1): write the three terms of both "
            "scores as numbers. Which of them are in your row?"
        ),
        "cost_of_dropping": (
            "Take query 2, keys 0, 2 and 4, width 2 (d = 1): which weights come with the "
            "norms, which without, and which weight changes most?"
        ),
    },
    "2.4": {
        "score_variance": (
            "Toss coins: each q_c is 2 or -2, each k_c is 3 or -3. What is the variance of "
            "q . k for d = 1 and d = 2?"
        ),
        "unit_scale": (
            "Let d be 16, `query_std` 2 and `key_std` 3: how large is the standard "
            "deviation of q . k before your factor, and after it?"
        ),
    },
    "2.5": {
        "softmax_backward": (
            "If score j rises, which weights of its row move, and in which direction?"
        ),
    },
    "2.6": {
        "activated_scores": (
            "Let f(x) be x^2, q = (1, 2), k = (3, -1), w = (2, -1): which score do you find "
            "by hand, and which does your function give?"
        ),
        "ignores_query": (
            "Read me the two calls of `attend` that you compare: what changes between them? "
            "Which difference of the outputs makes you answer False?"
        ),
    },
    "2.7": {
        "softmax_backward_kernel": (
            "Write the formula for a row of two keys with p = (1/4, 3/4) and g = (1, 0): "
            "which number is subtracted, and what are the two results?"
        ),
    },
    "3.1": {
        "decoder_step": "Which state is there before the word is read, and which only afterwards?",
    },
    "3.2": {
        "what_matters": (
            "For the source row 5 3 2 0: which rows do you give the model, round by round, "
            "and which logits do you compare after each?"
        ),
        "diagnosis": (
            "Count the True in rows 1 and 2 of each table: how many more or fewer are there "
            "than tokens in that sentence, `<eos>` included?"
        ),
    },
    "3.3": {
        "inputs_and_labels": (
            "For the target `<bos> le chat <eos>`: how long are your two rows, and what has "
            "the decoder read when it is asked for `chat`?"
        ),
        "masked_loss": (
            "Sentence 0 has the losses 1, 1, 1; sentence 1 has 5 and then two paddings: "
            "which sum do you divide, by what, and what comes out?"
        ),
    },
    "3.4": {
        "uniform_attention": (
            "What does a row of equal weights over four allowed keys sum to? And over none?"
        ),
    },
    "3.5": {
        "clipped_precision": (
            "Predicted `a b a b c`, reference `a b c`, n = 2: which pairs has each of them, "
            "and how many of the predicted ones count as right?"
        ),
        "bleu": (
            "Predicted `a b x`, reference `a b c d e f`, k = 2: which three factors do you "
            "multiply on paper, and which does your function multiply?"
        ),
    },
    "3.6": {
        "beam_search": (
            "Write the tree of the first two steps on paper: which sentences hold places now?"
        ),
    },
    "3.7": {
        "additive_backward": (
            "Draw the way from one query to the loss. Over what does each arrow sum?"
        ),
    },
    "3.8": {
        "weight_gradient": "Which program owns this slot, and who adds up the slots in the end?",
    },
    "4.1": {
        "split": (
            "One sentence of two tokens, 0 1 2 3 and 4 5 6 7, and two heads: which numbers "
            "belong to head 0, and which has yours?"
        ),
        "merge": (
            "Head 0 has 0 1 for token 0 and 4 5 for token 1; head 1 has 2 3 and 6 7: what "
            "is token 0's row, and yours?"
        ),
    },
    "4.2": {
        "mask_per_head": "Which sentence, and which head, is row 1 of the folded batch?",
    },
    "4.3": {
        "count_parameters": (
            "Write down the shape of each map. On which of them does the number of heads act?"
        ),
    },
    "4.4": {
        "fetch_error": (
            "Weights 1/2, 1/4, 1/4, variance 4, slots 0 and 1 asked: by hand, how large is "
            "E o^2, and which error is left for each asked slot?"
        ),
        "floor": (
            "Three slots are asked for, the variance is 4, and all weight lies on one of "
            "them: what are the three errors, and their mean?"
        ),
    },
    "4.5": {
        "pruned": (
            "Where in the layer does this head's result end, and what should stand there instead?"
        ),
    },
    "4.6": {
        "from_torch": "Which rows of the packed tensor make the keys? Say it for a layer 12 wide.",
    },
    "4.7": {
        "score_kernel": (
            "On paper, with 3 queries, 5 keys and `BLOCK` = 2: which rows of q and k does "
            "program (0, 2) read, and to which places does it store?"
        ),
        "flash_kernel": (
            "One query has the scores 0 and 2 in its first tile, 3 and an empty lane in the "
            "next: what are `largest` and `denominator` after each?"
        ),
    },
    "5.1": {
        "is_equivariant": (
            "Two calls: what is put into each, and how should their outputs be related?"
        ),
    },
    "5.2": {
        "sinusoids": "What stands in row 0? And in row 1, in the first two columns?",
    },
    "5.3": {
        "shift_matrix": "Take one pair of columns. By which angle is it turned for a step of one?",
    },
    "5.4": {
        "turn": (
            "Let row 2 of x be 1 0 0 1 and the base 100: by which two angles is it turned, "
            "and which four numbers come out?"
        ),
        "rotary_attention": (
            "With d = 4, base 100, all queries and keys 0 0 1 0: what is the score of query "
            "3, key 1, and of query 2, key 0?"
        ),
    },
    "5.5": {
        "path_length": (
            "Start at the first word: whom has it reached after one step, and after two?"
        ),
    },
    "5.6": {
        "rotary_kernel": (
            "Take the exercise's `heads` and `BLOCK` = 2: where does program (1, 1) read "
            "pair 1 of its first row, which angle turns it, where is it stored?"
        ),
        "rotary_backward_kernel": (
            "Let L be `y.sum()`, `HALF` = 1, `BLOCK` = 2: which strides has the gradient, "
            "and what is dL/dx in row 3 of head 1, by hand?"
        ),
    },
    "6.1": {
        "causal_mask": (
            "Read me the rows of a sentence with two words and one padding: who sees whom?"
        ),
    },
    "6.2": {
        "layer_norm": (
            "Take the tokens (1, 5) and (9, 9), with `eps` = 5: what should token 0 become "
            "by hand, and what does your function print for it?"
        ),
        "post_norm": (
            'Take x = 2, a sublayer that multiplies by 3 and a "norm" that squares: which '
            "number does the formula give, and which one does your function?"
        ),
        "pre_norm": (
            'Take x = 2, a "norm" that squares and a sublayer that multiplies by 3: which '
            "number reaches your sum along each of the two paths?"
        ),
        "pre_norm_stack": (
            "Call the sublayers f, g and the norms a, b, c: what does your stack compute "
            "from x, written out, and where does each letter stand?"
        ),
    },
    "6.3": {
        "leaks": (
            "Suppose position 1 of 4 leaks, and no other: which tokens do you change to "
            "find that, which output do you look at, and which number do you return?"
        ),
        "self_attention_lens": (
            "Three tokens are cached and two come at once: how many keys may each of the "
            "two see, and what do you print in either mode?"
        ),
    },
    "6.4": {
        "smooth_labels": (
            "Ids 0 to 4, `pad` = 2, epsilon 0.3: which five numbers belong to a label 4, "
            "which to a label 2, and what do you print?"
        ),
        "smoothed_loss": (
            "Write the formula out for one sentence with the labels 1, 2, 0, three ids, "
            "`pad` = 0: which products q log p remain, and by what do you divide?"
        ),
    },
    "6.5": {
        "cached_step": (
            "Two tokens are cached and a third comes: which position does it get, what does "
            "each of the three maps read, and how many scores are there?"
        ),
        "reorder": (
            "The old beams are A, B, C, and `parents` is [2, 0, 0]: which beams are in your "
            "new keys, which in your new values, and in what order?"
        ),
    },
    "6.6": {
        "layer_norm_backward": (
            "Add a small number to one feature: which numbers of the row move, and by what ways?"
        ),
    },
    "6.7": {
        "layer_norm_kernel": "What do the empty lanes hold after you have taken the mean away?",
    },
    "6.8": {
        "causal_kernel": "Which is the last key that the last query of this tile may see?",
    },
    "7.1": {
        "patches": (
            "Take an image of 4 by 6 and patches of 2: which pixels are in row 1 of your result?"
        ),
    },
    "7.2": {
        "embed": (
            "A patch of 2 channels, 2 by 3 pixels, is 0 except for its number 7 (from 0), "
            "which is 1: which entries of `weight` and `bias` make its token?"
        ),
        "embed_backward": (
            "Two images, two patches of one pixel each, d = 1: x is [1, 2] and [3, 4], g is "
            "[1, 1] and [2, 2]. What are dL/dw and dL/db?"
        ),
    },
    "7.3": {
        "resize": (
            "Which row of the table is the class token's, and where in the picture does it stand?"
        ),
    },
    "7.4": {
        "rollout": "Which layer meets the pixels, and at which end of the product does it stand?",
    },
    "7.5": {
        "pool": "Which tokens are averaged, and by which number is the sum divided?",
    },
    "7.6": {
        "patch_kernel": "Where does number 0 of patch 1 lie in the image? And number 1?",
    },
    "8.1": {
        "attend": "Change one item of the batch. Whose outputs may move, and whose do?",
    },
    "8.2": {
        "unlooped": "What does step 5 of the second network need, and when is that there?",
    },
    "8.3": {
        "attention_bytes": (
            "Batch 2, 3 queries, 5 keys, width 4: how many numbers have H, M, S, A and O "
            "each, and which of them stand in your gradients?"
        ),
        "stack_bytes": (
            "Two layers make ten tensors: write down the shape of each, with the batch, and "
            "the derivative that needs it. Which of them wait for the backward pass?"
        ),
    },
    "8.4": {
        "collapse": (
            "What does the path 1 1 0 1 2 2 2 0 1 say by hand, and at which step does your "
            "function decide otherwise?"
        ),
        "probability": (
            "Two steps, each with 0.7 for the blank and 0.3 for 1: what does each possible "
            "path say, how probable is it, and which ones do you use for [1]?"
        ),
    },
    "8.5": {
        "sliding": (
            "With n = 10, window 2 and dilation 2: which keys should query 5 see, which "
            "query 0, and what do these two rows of your mask say?"
        ),
        "blocks": (
            "Eight steps in blocks of 3: which keys should query 3 see, which query 7, and "
            "what do these two rows of your mask say?"
        ),
        "reached": (
            "Each of twelve steps sees itself and the step two ahead: of whom has step 2 "
            "heard after one, two and three layers, and what does your row 2 say?"
        ),
    },
    "8.6": {
        "window_kernel": (
            "Which is the first key that any query of program 1 sees, and which is the last?"
        ),
    },
    "9.1": {
        "linformer": "How many rows has E times the keys, and what is each of them a mixture of?",
    },
    "9.2": {
        "padded": "Which slot knows nothing of the padding, after the projection?",
    },
    "9.3": {
        "leaks": (
            "Let output i be the sum of inputs i and i + 1, for four positions: which "
            "entries of the table should be True, and which does your loop mark?"
        ),
        "diagnosis": (
            "Print this layer's table: which later inputs move output 0, which move output "
            "3 (from 0), and which of the four descriptions fits both rows?"
        ),
    },
    "9.4": {
        "spread": (
            "For k = 1 and k = 4, with n = 10: what are the ratio's variance and its root "
            "by hand, and what do you return?"
        ),
        "slots_needed": (
            "Take three points: how many distances must hold, what is the bound for one of "
            "them, and how likely is it, at most, that any fails?"
        ),
        "measured": (
            "One draw is R = [[2, 5]], x is [3, 1], y is [1, 1]: which ratio is that by "
            "hand, and what do you return of many?"
        ),
    },
    "9.5": {
        "energy": (
            "The weights of two heads have the singular values 1, 0.5 and 1, 0: which "
            "shares does each head give by hand, and what should `energy` return?"
        ),
        "directions": (
            "With `held` = 0.5, 0.75, 1: how many directions do you need for 0.75, how many "
            "for 0.8, and what does your function return?"
        ),
    },
    "9.6": {
        "project": "Four programs, 40 positions: which of them adds up position 25?",
    },
    "10.1": {
        "count_many": (
            "Draw 2 rows and 3 columns: which paths lead to the far corner, each written "
            "with R (right) and D (down), and what does your function return?"
        ),
        "count_one": (
            "Draw 4 rows and 3 columns: which paths lead to the far corner, written with S "
            "(same column) and N (next), and what does your function return?"
        ),
    },
    "10.2": {
        "visit_many": (
            "Take a 2 by 2 grid: what is phi of each of the four nodes, written with p_00, "
            "p_01 and p_10, and what does your code put there?"
        ),
        "visit_one": (
            "Three rows, two columns: what is phi of each node, row by row, written with "
            "p_00, p_10 and p_11, and what does your code put there?"
        ),
    },
    "10.3": {
        "log_not": (
            "For x = log 0.25 and for x = -1e-8: what is 1 - p by hand, and what does each "
            "operation of your line print on the way?"
        ),
        "log_add": (
            "Take a = (-1000, -1000, -inf) and b = (-1000, 0, -inf), as logarithms: which "
            "three numbers should come out, and what does one call print?"
        ),
        "log_visit": (
            "A 2 by 2 grid, p_00 = 1/4, the other p 1/2: which four probabilities should "
            "your table stand for, and what does `.exp()` of it print?"
        ),
    },
    "10.4": {
        "gradient": "In which two equations does this coin stand, and with which sign in each?",
    },
    "10.5": {
        "leaks": (
            "Let row i of the weights depend on logit rows i and i + 1 alone, for four "
            "queries: which entries should be True, and which does your loop mark?"
        ),
        "diagnosis": (
            "Which later queries move row 0 of these weights, and what does "
            "`weights.sum(0)` print? Which of the four descriptions says both?"
        ),
    },
    "10.6": {
        "walk": "At which key does query 2 begin, and for which keys have you asked by then?",
    },
    "10.7": {
        "combine": (
            "Double h and add 1, then triple that and add 5: what have you done to h in "
            "all, and what does `combine(2, 1, 3, 5)` return?"
        ),
        "scan_kernel": (
            "With `BLOCK` 2, a row [1, 2, 3, 4, 5] of a, every b 1: which h belongs in each "
            "lane, and which goes on to each next panel?"
        ),
    },
}
