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
    r"returned None(: is the `return` missing\?)?": (
        "it returned None: is the `return` missing?",
        "the last line computes and does not return",
        "What does your function hand to whoever calls it?",
    ),
    r"(returned shape|… shape …; expected|expected \[).*?(Which axis was summed over.*)?$": (
        "it returned shape …; expected …",
        "an axis summed over or kept that should not be, or two of them exchanged",
        "Read me the expected shape: which axis is which? Which of them is yours?",
    ),
    r"your code raised|raised \w+Error|selected index|view size|shapes cannot be": (
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

#: The question to begin with, for each exercise.
FIRST = {
    "1.1": "Read me row 3 of your weights: which keys are in it, and what does it sum to?",
    "1.2": "Which kernel value is the largest, and what becomes of the others if you divide by it?",
    "1.3": "Read me row 3 of your mask: who is hidden, and what do the weights of the rest sum to?",
    "1.4": "What is the derivative of one kernel value, and where in the fraction does it stand?",
    "1.5": "A difference is divided by its width. Which width would make it vanish?",
    "1.6": "For one query with five keys and k = 2, which entries of the row are not zero?",
    "1.7": "The last tile has 16 lanes and 8 keys. What do the other 8 lanes add to each sum?",
    "2.1": "Whose attention is it: over which index does one query's row run?",
    "2.2": "What does your code return for a row in which nothing is allowed, and why?",
    "2.3": "Which of the three terms is the same for all keys of one row?",
    "2.4": "How many terms has the sum, and what is the variance of one of them?",
    "2.5": "If score j rises, which weights of its row move, and in which direction?",
    "2.6": "Change nothing but the query. What should move, and does it?",
    "2.7": "Which number in an empty lane leaves a maximum as it was, and which a sum?",
    "3.1": "Which state is there before the word is read, and which only afterwards?",
    "3.2": "Which position did you change, and in which sentences did the logits move?",
    "3.3": "Say it aloud, step by step: what is read, and what is asked for?",
    "3.4": "What does a row of equal weights over four allowed keys sum to? And over none?",
    "3.5": "Count on paper: how many runs of two tokens are there, and how many of them are right?",
    "3.6": "Write the tree of the first two steps on paper: which sentences hold places now?",
    "3.7": "Draw the way from one query to the loss. Over what does each arrow sum?",
    "3.8": "Which program owns this slot, and who adds up the slots in the end?",
    "4.1": "Which number of the input should stand at head 1, token 0, column 0?",
    "4.2": "Which sentence, and which head, is row 1 of the folded batch?",
    "4.3": "Write down the shape of each map. On which of them does the number of heads act?",
    "4.4": "How many numbers can one head bring back, and how many are unknown?",
    "4.5": "Where in the layer does this head's result end, and what should stand there instead?",
    "4.6": "Which rows of the packed tensor make the keys? Say it for a layer 12 wide.",
    "4.7": "When a larger score turns up, by which number are the old sums wrong?",
    "5.1": "Two calls: what is put into each, and how should their outputs be related?",
    "5.2": "What stands in row 0? And in row 1, in the first two columns?",
    "5.3": "Take one pair of columns. By which angle is it turned for a step of one?",
    "5.4": "Which two columns make a pair, and by which angle does token 3 turn them?",
    "5.5": "Start at the first word: whom has it reached after one step, and after two?",
    "5.6": "How far apart in memory are row i and row i + 1 of one head?",
    "6.1": "Read me the rows of a sentence with two words and one padding: who sees whom?",
    "6.2": "Follow x past the sublayer to the output. What has been done to it on the way?",
    "6.3": "Which input did you change, and which earlier outputs moved? In which mode?",
    "6.4": "Write the target of one word with six ids. What does it sum to, and who gets nothing?",
    "6.5": "After three tokens, how many keys are kept, and at which position is the next one?",
    "6.6": "Add a small number to one feature: which numbers of the row move, and by what ways?",
    "6.7": "What do the empty lanes hold after you have taken the mean away?",
    "6.8": "Which is the last key that the last query of this tile may see?",
    "7.1": "Take an image of 4 by 6 and patches of 2: which pixels are in row 1 of your result?",
    "7.2": "Over what does the gradient of one weight sum: images, patches, outputs?",
    "7.3": "Which row of the table is the class token's, and where in the picture does it stand?",
    "7.4": "Which layer meets the pixels, and at which end of the product does it stand?",
    "7.5": "Which tokens are averaged, and by which number is the sum divided?",
    "7.6": "Where does number 0 of patch 1 lie in the image? And number 1?",
    "8.1": "Change one item of the batch. Whose outputs may move, and whose do?",
    "8.2": "What does step 5 of the second network need, and when is that there?",
    "8.3": "Write the gradient on paper. Which letters stand in it?",
    "8.4": "List all paths of two steps over a blank and one character. What does each say?",
    "8.5": "Draw the rows of five steps with a window of one. Which steps does row 2 see?",
    "8.6": "Which is the first key that any query of program 1 sees, and which is the last?",
    "9.1": "How many rows has E times the keys, and what is each of them a mixture of?",
    "9.2": "Which slot knows nothing of the padding, after the projection?",
    "9.3": "Which row did you change, which rows above it moved, and in which mode was the layer?",
    "9.4": "What does chance decide here, and what is the mean of it over many draws?",
    "9.5": "Which matrix has the singular values you took: the scores, or the weights?",
    "9.6": "Four programs, 40 positions: which of them adds up position 25?",
    "10.1": "Draw a grid of 2 by 3. How many steps has a path, and which of them can be chosen?",
    "10.2": "Who throws the coin at this node, and by which two nodes can a path have come?",
    "10.3": "Which number do you take the logarithm of, and how near is it to 0 or to 1?",
    "10.4": "In which two equations does this coin stand, and with which sign in each?",
    "10.5": "Which query did you change, and which earlier rows moved?",
    "10.6": "At which key does query 2 begin, and for which keys have you asked by then?",
    "10.7": "Put the first map into the second and multiply out: which factor meets which summand?",
}
