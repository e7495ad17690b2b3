"""The words of the embedded grammar, by topic, the most frequent first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """The words of one topic. Keys: "agent", nouns that can act, and "matter", nouns that can't; verbs_for: by kind of object."""

    nouns: dict[str, list[str]]
    adjectives: dict[str, list[str]]
    verbs_for: dict[str, list[str]]
    places: list[str]


def _topic(agents: str, matters: str, adjectives: tuple[str, str], verbs: tuple[str, str], places: str) -> Topic:
    kinds = ("agent", "matter")
    return Topic(
        nouns=dict(zip(kinds, (agents.split(), matters.split()), strict=True)),
        adjectives=dict(zip(kinds, (text.split() for text in adjectives), strict=True)),
        verbs_for=dict(zip(kinds, (text.split() for text in verbs), strict=True)),
        places=places.split(),
    )


def plural(noun: str) -> str:
    """Plural of a regular noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def past(verb: str) -> str:
    """Past tense and participle of a regular verb."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"


TOPICS = {
    "finance": _topic(
        "bank investor trader broker fund analyst dealer lender creditor underwriter shareholder insurer banker "
        "speculator thrift treasurer arbitrager depositor",
        "share bond loan stock dividend security mortgage asset deposit currency debenture warrant option future "
        "treasury portfolio debt yield premium coupon",
        ("big foreign institutional regional japanese small nervous savvy troubled aggressive large wealthy",
         "convertible preferred overnight risky subordinated overvalued junior municipal fixed-rate long-term "
         "short-term outstanding"),
        ("acquire finance advise rescue reassure notify sue audit", "issue price trade redeem guarantee hedge value "
         "dump purchase convert liquidate refinance"),
        "tokyo london manhattan zurich frankfurt chicago luxembourg",
    ),
    "politics": _topic(
        "senator lawmaker committee minister voter governor candidate diplomat president delegate congressman mayor "
        "party ambassador conservative democrat republican aide",
        "bill treaty amendment veto budget tax resolution sanction election campaign deficit reform proposal "
        "subsidy referendum mandate policy statute",
        ("liberal moderate elected outspoken influential ruling embattled former soviet federal senior partisan",
         "controversial bipartisan domestic capital-gains legislative emergency unpopular sweeping modest "
         "constitutional radical temporary"),
        ("endorse criticize lobby appoint defeat nominate persuade accuse", "debate oppose approve reject draft "
         "propose support enact delay denounce amend postpone"),
        "washington moscow congress parliament beijing warsaw brussels",
    ),
    "industry": _topic(
        "company manufacturer supplier maker firm retailer distributor automaker conglomerate producer competitor "
        "subsidiary steelmaker refiner importer dealership exporter brewer",
        "product car plant factory machine engine truck unit brand order shipment inventory aircraft tire "
        "warehouse component tractor appliance",
        ("leading giant diversified closely-held bankrupt efficient korean family-owned "
         "privately-owned ailing rival", "new luxury imported defective inexpensive popular heavy-duty compact "
         "high-quality obsolete durable unsold"),
        ("supply license undercut restructure outbid manage recruit dominate", "produce assemble launch recall "
         "manufacture export design ship market discontinue modernize overhaul"),
        "detroit ohio michigan taiwan seoul pittsburgh mexico",
    ),
    "law": _topic(
        "judge lawyer jury prosecutor defendant plaintiff court attorney regulator witness investigator trustee "
        "detective litigant arbitrator magistrate inspector bailiff",
        "case ruling lawsuit claim verdict indictment appeal settlement complaint contract patent fine subpoena "
        "injunction testimony charge penalty plea",
        ("civil criminal experienced respected skeptical convicted court-appointed independent circuit local "
         "hostile veteran", "pending fraudulent landmark unanimous costly sealed lengthy antitrust unresolved "
         "separate bitter disputed"),
        ("cross-examine prosecute indict represent acquit interview warn summon", "file dismiss review uphold overturn "
         "contest resolve adjourn weigh revisit ignore clarify"),
        "delaware houston miami arkansas brooklyn atlanta nebraska",
    ),
    "science": _topic(
        "researcher scientist doctor laboratory university physician engineer biologist patient hospital "
        "chemist astronomer surgeon institute nurse geneticist professor student",
        "drug gene vaccine experiment disease therapy virus treatment cell theory protein study enzyme tumor "
        "hormone antibody symptom compound",
        ("academic medical young brilliant american curious cautious retired cancer clinical swedish eager",
         "experimental genetic promising rare chronic synthetic toxic effective contagious dangerous novel "
         "unproven"),
        ("consult assist train treat cure examine inform invite", "test develop isolate confirm discover "
         "analyze observe describe reproduce inject identify detect"),
        "boston stanford geneva cambridge baltimore stockholm oxford",
    ),
    "media": _topic(
        "network publisher editor reporter studio broadcaster journalist critic advertiser columnist photographer "
        "viewer newspaper agency reader celebrity screenwriter filmmaker",
        "program movie magazine story advertisement series book commercial article headline film episode "
        "broadcast script novel documentary sitcom slogan",
        ("national prime-time sensational daily glossy british cable hungry prominent tabloid famous weekly",
         "award-winning original violent funny expensive live serious foreign-language educational dull sexy "
         "animated"),
        ("hire interview promote entertain praise ridicule flatter replace", "publish air cancel edit syndicate revive "
         "feature rewrite sponsor preview translate record"),
        "hollywood paris burbank vienna cannes sydney toronto",
    ),
    "energy": _topic(
        "utility driller refinery operator pipeline environmentalist oilman geologist contractor consortium cartel "
        "miner superintendent explorer landlord cooperative landowner rancher",
        "well reserve reactor barrel turbine field fuel spill rig mine tanker dam emission lease tariff "
        "contamination meter blackout",
        ("saudi nuclear offshore texas state-owned canadian norwegian integrated coastal electric wildcat "
         "cash-rich", "natural-gas crude abandoned hazardous deep abundant leaking idle solar coal-fired leaded "
         "renewable"),
        ("regulate compensate exclude blame nationalize organize subsidize join", "drill explore pump restart "
         "flood monitor operate inspect expand abandon import reopen"),
        "alaska siberia kuwait louisiana norway venezuela wyoming",
    ),
    "sports": _topic(
        "team player coach owner pitcher league fan umpire quarterback rookie manager champion club outfielder "
        "spectator shortstop goalkeeper referee",
        "game season title stadium roster trophy ticket dugout playoff tournament inning touchdown "
        "championship home-run salary rivalry match uniform",
        ("seasoned talented injured winless unbeaten left-handed loyal arrogant legendary tired overpaid "
         "tall", "exciting crucial disappointing final historic sold-out exhausting memorable opening "
         "humiliating close annual"),
        ("bench salute sign boo insult cheer tutor fire", "watch attend host schedule enjoy celebrate "
         "replay remember forfeit dread play commemorate"),
        "oakland cincinnati pasadena cleveland denver milwaukee dallas",
    ),
}

OPENERS = [
    "but", "meanwhile", "in addition", "however", "still", "for example", "of course", "by contrast", "in fact",
    "nevertheless", "as a result", "at the same time", "so far", "on the other hand", "earlier this year",
]
CONJUNCTIONS = ["but", "while", "as", "although", "because", "after", "before", "even though", "until", "whereas"]
ADVERBS = ["again", "yesterday", "recently", "quickly", "reluctantly", "today", "earlier", "publicly", "twice",
           "successfully", "carefully", "quietly", "once more"]
SCALES = ["million", "billion", "thousand", "trillion"]
PERIODS = ["week", "month", "year", "friday", "quarter", "night", "summer", "spring", "fall"]
WEEKDAYS = ["monday", "friday", "tuesday", "wednesday", "thursday", "saturday", "sunday"]
MONTHS = ["october", "september", "november", "august", "june", "july", "december", "january", "march", "may",
          "april", "february"]
FIRST_NAMES = (
    "john robert james william michael david richard thomas peter george paul edward susan mary donald frank joseph "
    "kenneth barbara stephen martin jeffrey alan nancy roger elizabeth carl walter philip anne harold daniel linda "
    "raymond karen douglas lawrence patricia steven henry"
).split()
LAST_NAMES = (
    "smith johnson baker williams brown jones miller davis wilson anderson taylor thompson moore jackson phillips lee "
    "roberts carter murphy cohen kaufman peterson bennett hughes sullivan foster russell griffin hayes fisher ellis "
    "gibson ford wallace stone berman goldman watkins reynolds dixon harper keller schwartz lambert nakamura sato "
    "rossi dubois larsen novak"
).split()
