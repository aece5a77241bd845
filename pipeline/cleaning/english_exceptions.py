"""English chunks that the punctuation rules would split incorrectly: contractions, abbreviations, emoticons.

These are the tokenizer exceptions of spaCy's English language class, which datatrove's filters use to count words.
"""

_Endings = tuple[tuple[str, ...], ...]

_WOULD: _Endings = (("'ll",), ("'ll", "'ve"), ("'d",), ("'d", "'ve"))
_NOT: _Endings = (("n't",),)

#: Words and their possible endings. The apostrophe is optional, and the first letter may be capitalized.
_JOINED: tuple[tuple[str, _Endings], ...] = (
    ("i", (("'m",), ("'m", "a"))),
    ("i you he she it we they", _WOULD),
    ("i you we they", (("'ve",),)),
    ("you we they", (("'re",),)),
    ("he she it", (("'s",),)),
    ("who what when where why how there that this", (("'s",),)),
    ("who what when where why how there that this these those", _WOULD),
    ("who what when where why how there these those", (("'re",), ("'ve",))),
    (
        "ca could do does did had may might must need ought sha should wo would",
        (*_NOT, ("n't", "'ve")),
    ),
    ("ai are is was were have has dare", _NOT),
    ("could might must should would not", (("'ve",),)),
)
#: Contractions that become different words without the apostrophe.
_WORDS = frozenset(("ill", "its", "hell", "shell", "shed", "were", "well", "whore"))

#: Other chunks that consist of several words, separated here by bars.
_SEPARATED = (
    "y'|all y|all how|'d|'y How|'d|'y can|not Can|not gon|na Gon|na got|ta Got|ta let|'s Let|'s c'm|on C'm|on "
    "°|c|. °|f|. °|k|. °|C|. °|F|. °|K|."
)

_ABBREVIATIONS = (
    "Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. "
    "Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. "
    "Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. p.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. "
    "Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s. "
    'ä. ö. ü. and/or w/o C++ <space> — \\")'
)
_APOSTROPHES = (
    "' '' 'd 'S 's ‘S ‘s 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout 'em 'Em 'll 'Ll 'nuff 'Nuff "
    "ma'am Ma'am o'clock O'clock lovin' Lovin' havin' Havin' doin' Doin' goin' Goin' nothin' Nothin' nuthin' Nuthin' "
    "ol' Ol' somethin' Somethin'"
)
_EMOTICONS = (
    ":) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( "
    ":-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 "
    ":() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< "
    "._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 "
    "(^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>"
)


def _contractions() -> dict[str, list[str]]:
    words_by_chunk: dict[str, list[str]] = {}
    for words, endings in _JOINED:
        for word in (form for lower in words.split() for form in (lower, lower.title())):
            for ending in endings:
                bare = [part.removeprefix("'") if part != "n't" else "nt" for part in ending]
                words_by_chunk[word + "".join(ending)] = [word, *ending]
                if (joined := word + "".join(bare)).lower() not in _WORDS:
                    words_by_chunk[joined] = [word, *bare]
    return words_by_chunk


def exceptions() -> dict[str, list[str]]:
    """Return a map from each chunk to its words, covering both straight and curly apostrophes."""
    words_by_chunk = _contractions()
    for chunk in _SEPARATED.split():
        words_by_chunk[chunk.replace("|", "")] = chunk.split("|")
    for hour in range(1, 13):
        words_by_chunk |= {f"{hour}{half}": [str(hour), half] for half in ("a.m.", "am", "p.m.", "pm")}
    letters = [f"{chr(code)}." for code in range(ord("a"), ord("z") + 1)]
    for chunk in (*letters, *_ABBREVIATIONS.split(), *_APOSTROPHES.split(), *_EMOTICONS.split()):
        words_by_chunk[chunk] = [chunk]
    curly = {
        chunk.replace("'", "’"): [part.replace("'", "’") for part in parts] for chunk, parts in words_by_chunk.items()
    }
    return {**curly, **words_by_chunk}
