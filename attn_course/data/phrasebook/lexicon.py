"""The words: one line an entry, English | French | Spanish | how it may be used.

Chosen for what they make a translator learn: genders that differ between the languages,
irregular plurals, words before which French elides (``l' homme``) or must not
(``le hibou``), one word that becomes three (``pomme de terre``).
"""

from __future__ import annotations

from typing import NamedTuple


class Noun(NamedTuple):
    """A noun: singular and plural, and whether it is feminine, by language."""

    english: tuple[str, str]
    french: tuple[str, str]
    spanish: tuple[str, str]
    french_feminine: bool
    spanish_feminine: bool
    kind: str

    @property
    def animate(self) -> bool:
        """Whether it can see, eat and so on."""
        return self.kind in ("person", "animal")


class Adjective(NamedTuple):
    """An adjective: masculine, feminine, plural masculine, plural feminine.

    ``liaison`` is the French masculine singular before a vowel, ``estar`` says which
    Spanish "is" it takes, ``kinds`` which nouns it describes.
    """

    english: str
    french: tuple[str, str, str, str]
    liaison: str
    spanish: tuple[str, str, str, str]
    estar: bool
    kinds: frozenset[str]


class Verb(NamedTuple):
    """A verb in the first person, third person and third person plural.

    ``english`` is the base, the third person and the past; ``kinds`` says which nouns
    may be its object, and is empty for a verb without one.
    """

    english: tuple[str, str, str]
    french: tuple[str, str, str]
    participle: str
    spanish: tuple[str, str, str]
    spanish_past: tuple[str, str, str]
    kinds: frozenset[str]
    by_person: bool


NOUNS = """
    man men | homme hommes m | hombre hombres m | person
    woman women | femme femmes f | mujer mujeres f | person
    boy boys | garçon garçons m | chico chicos m | person
    girl girls | fille filles f | chica chicas f | person
    king kings | roi rois m | rey reyes m | person
    queen queens | reine reines f | reina reinas f | person
    child children | enfant enfants m | niño niños m | person
    actress actresses | actrice actrices f | actriz actrices f | person
    cat cats | chat chats m | gato gatos m | animal
    dog dogs | chien chiens m | perro perros m | animal
    mouse mice | souris souris f | ratón ratones m | animal
    horse horses | cheval chevaux m | caballo caballos m | animal
    bird birds | oiseau oiseaux m | pájaro pájaros m | animal
    cow cows | vache vaches f | vaca vacas f | animal
    owl owls | hibou hiboux m | búho búhos m | animal
    bee bees | abeille abeilles f | abeja abejas f | animal
    apple apples | pomme pommes f | manzana manzanas f | fruit
    lemon lemons | citron citrons m | limón limones m | fruit
    pear pears | poire poires f | pera peras f | fruit
    egg eggs | œuf œufs m | huevo huevos m | food
    tomato tomatoes | tomate tomates f | tomate tomates m | fruit
    onion onions | oignon oignons m | cebolla cebollas f | food
    potato potatoes | pomme_de_terre pommes_de_terre f | patata patatas f | food
    book books | livre livres m | libro libros m | thing
    key keys | clé clés f | llave llaves f | thing
    box boxes | boîte boîtes f | caja cajas f | thing
    hat hats | chapeau chapeaux m | sombrero sombreros m | carried
    umbrella umbrellas | parapluie parapluies m | paraguas paraguas m | carried
    bag bags | sac sacs m | bolsa bolsas f | carried
    flower flowers | fleur fleurs f | flor flores f | carried
    clock clocks | horloge horloges f | reloj relojes m | thing
    car cars | voiture voitures f | coche coches m | thing
    garden gardens | jardin jardins m | jardín jardines m | place
    house houses | maison maisons f | casa casas f | place
    kitchen kitchens | cuisine cuisines f | cocina cocinas f | place
    forest forests | forêt forêts f | bosque bosques m | place
    school schools | école écoles f | escuela escuelas f | place
    hotel hotels | hôtel hôtels m | hotel hoteles m | place
"""

#: In French these stand before the noun; in English they come first of two.
BEFORE = """
    small | petit petite petits petites | pequeño pequeña pequeños pequeñas | ser
        | person animal food thing place
    big | grand grande grands grandes | grande grande grandes grandes | ser
        | animal food thing place
    old | vieux/vieil vieille vieux vieilles | viejo vieja viejos viejas | ser
        | person animal thing place
    young | jeune jeune jeunes jeunes | joven joven jóvenes jóvenes | ser | person animal
    beautiful | beau/bel belle beaux belles | hermoso hermosa hermosos hermosas | ser
        | person animal food thing place
"""

#: In French these stand after the noun.
AFTER = """
    black | noir noire noirs noires | negro negra negros negras | ser | animal thing
    white | blanc blanche blancs blanches | blanco blanca blancos blancas | ser
        | animal thing place
    red | rouge rouge rouges rouges | rojo roja rojos rojas | ser | food thing
    green | vert verte verts vertes | verde verde verdes verdes | ser | food thing
    grey | gris grise gris grises | gris gris grises grises | ser | animal thing place
    brown | marron marron marron marron | marrón marrón marrones marrones | ser
        | animal thing
    ripe | mûr mûre mûrs mûres | maduro madura maduros maduras | estar | fruit
    heavy | lourd lourde lourds lourdes | pesado pesada pesados pesadas | ser | thing
    wet | mouillé mouillée mouillés mouillées | mojado mojada mojados mojadas | estar
        | person animal thing
    tired | fatigué fatiguée fatigués fatiguées | cansado cansada cansados cansadas | estar
        | person animal
    happy | heureux heureuse heureux heureuses | feliz feliz felices felices | ser
        | person animal
    strong | fort forte forts fortes | fuerte fuerte fuertes fuertes | ser | person animal
"""

#: English | French, present and participle | Spanish, present | Spanish, past | objects
VERBS = """
    see sees saw | vois voit voient vu | veo ve ven | vi vio vieron
        | person animal food thing place
    hear hears heard | entends entend entendent entendu | oigo oye oyen | oí oyó oyeron
        | person animal
    follow follows followed | suis suit suivent suivi | sigo sigue siguen
        | seguí siguió siguieron | person animal
    help helps helped | aide aide aident aidé | ayudo ayuda ayudan
        | ayudé ayudó ayudaron | person animal
    call calls called | appelle appelle appellent appelé | llamo llama llaman
        | llamé llamó llamaron | person animal
    look_for looks_for looked_for | cherche cherche cherchent cherché | busco busca buscan
        | busqué buscó buscaron | person animal food thing place
    eat eats ate | mange mange mangent mangé | como come comen | comí comió comieron | food
    hide hides hid | cache cache cachent caché | escondo esconde esconden
        | escondí escondió escondieron | food thing
    break breaks broke | casse casse cassent cassé | rompo rompe rompen
        | rompí rompió rompieron | thing
    buy buys bought | achète achète achètent acheté | compro compra compran
        | compré compró compraron | food thing / person
    sell sells sold | vends vend vendent vendu | vendo vende venden
        | vendí vendió vendieron | food thing / person
    wash washes washed | lave lave lavent lavé | lavo lava lavan
        | lavé lavó lavaron | food thing / person
    sleep sleeps slept | dors dort dorment dormi | duermo duerme duermen
        | dormí durmió durmieron |
    sing sings sang | chante chante chantent chanté | canto canta cantan
        | canté cantó cantaron |
    work works worked | travaille travaille travaillent travaillé | trabajo trabaja trabajan
        | trabajé trabajó trabajaron |
    wait waits waited | attends attend attendent attendu | espero espera esperan
        | esperé esperó esperaron |
"""

#: English, French, Spanish.
WEEKDAYS = tuple(
    zip(
        "monday tuesday wednesday thursday friday saturday sunday".split(),
        "lundi mardi mercredi jeudi vendredi samedi dimanche".split(),
        "lunes martes miércoles jueves viernes sábado domingo".split(),
        strict=True,
    )
)
MONTHS = tuple(
    zip(
        "january february march april may june july august september october november "
        "december".split(),
        "janvier février mars avril mai juin juillet août septembre octobre novembre "
        "décembre".split(),
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre "
        "diciembre".split(),
        strict=True,
    )
)
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)

PREPOSITIONS = {
    "in": ("dans", "en"),
    "near": ("près de", "cerca de"),
    "behind": ("derrière", "detrás de"),
    "with": ("avec", "con"),
}
CONJUNCTIONS = {
    "and": ("et", "y"),
    "but": ("mais", "pero"),
    "when": ("quand", "cuando"),
    "because": ("parce que", "porque"),
}


def _kinds(text: str) -> frozenset[str]:
    """The kinds of nouns; fruit is food, and what can be carried is a thing."""
    kinds = set(text.split())
    if "food" in kinds:
        kinds.add("fruit")
    if "thing" in kinds:
        kinds.add("carried")
    return frozenset(kinds)


def _entries(table: str) -> list[list[str]]:
    """The cells of each entry; a line that starts with ``|`` goes on with the last one."""
    lines: list[str] = []
    for line in table.strip().splitlines():
        if line.strip().startswith("|"):
            lines[-1] += line
        else:
            lines.append(line)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def _noun(cells: list[str]) -> Noun:
    english, french, spanish, kind = cells
    *fr, fr_gender = french.split()
    *es, es_gender = spanish.split()
    one, many = english.split()
    return Noun(
        (one, many), (fr[0], fr[1]), (es[0], es[1]), fr_gender == "f", es_gender == "f", kind
    )


def _adjective(cells: list[str]) -> Adjective:
    english, french, spanish, copula, kinds = cells
    masculine, *others = french.split()
    plain, _, liaison = masculine.partition("/")
    a, b, c = others
    d, e, f, g = spanish.split()
    return Adjective(
        english, (plain, a, b, c), liaison or plain, (d, e, f, g), copula == "estar", _kinds(kinds)
    )


def _verb(cells: list[str]) -> Verb:
    english, french, present, past, kinds = cells
    a, b, c = english.split()
    d, e, f, participle = french.split()
    g, h, i = present.split()
    j, k, m = past.split()
    objects, _, by = kinds.partition("/")
    return Verb((a, b, c), (d, e, f), participle, (g, h, i), (j, k, m), _kinds(objects), bool(by))


nouns = [_noun(cells) for cells in _entries(NOUNS)]
before = [_adjective(cells) for cells in _entries(BEFORE)]
after = [_adjective(cells) for cells in _entries(AFTER)]
verbs = [_verb(cells) for cells in _entries(VERBS)]
