"""lxml, isolated and used as in its own tutorial."""

import io

from behaviour.harness import both, raises, worlds  # noqa: F401

XML = b"<?xml version='1.0'?><root a='1'><child n='x'>text<b>bold</b>tail</child><child n='y'/><!-- c --></root>"


@both
def test_elements(load):
    etree = load("lxml.etree")
    root = etree.Element("root", interesting="totally")
    etree.SubElement(root, "child").text = "Child 1"
    etree.SubElement(root, "child").text = "Child 2"
    root.append(etree.Element("another"))
    root.insert(0, etree.Element("first"))
    root.set("hello", "world")
    child = root[1]
    return (
        root.tag, len(root), child.tag, child.text, [c.tag for c in root], root.index(child), [c.tag for c in root[1:]], root[-1].tag,
        etree.tostring(root), root.get("hello"), root.get("no"), sorted(root.keys()), dict(root.attrib), list(root.attrib.items()),
        etree.iselement(root), child.getparent() is root, child.getnext().text, bool(len(root)), child in list(root), root.attrib["hello"],
        "hello" in root.attrib, repr(root).startswith("<Element root at"),
    )  # fmt: skip


@both
def test_changing(load):
    etree = load("lxml.etree")
    root = etree.fromstring(XML)
    root[0].text = "new"
    root[0].tail = "after"
    root.attrib["b"] = "2"
    del root.attrib["a"]
    root.remove(root[1])
    root[0] = etree.XML("<replaced/>")
    root.extend([etree.Element("e1"), etree.Element("e2")])
    root[1:2] = [etree.Element("sliced")]
    del root[0]
    root.tag = "renamed"
    return etree.tostring(root), root.xpath("string()"), etree.tostring(root, pretty_print=True, encoding="unicode")


@both
def test_parsing(load, tmp_path):
    etree = load("lxml.etree")
    path = tmp_path / "doc.xml"
    path.write_bytes(XML)
    trees = [etree.parse(str(path)), etree.parse(path), etree.parse(io.BytesIO(XML))]
    with open(path, "rb") as file:
        trees.append(etree.parse(file))
    out = io.BytesIO()
    trees[0].write(out, xml_declaration=True, encoding="utf-8")
    trees[0].write(str(tmp_path / "out.xml"))
    parser = etree.XMLParser(remove_blank_text=True, remove_comments=True)
    fed = etree.XMLParser()
    fed.feed("<ro")
    fed.feed("ot/>")
    return (
        [etree.tostring(t) for t in trees], out.getvalue(), (tmp_path / "out.xml").read_bytes(), etree.tostring(etree.XML("<a> <b/> <!-- x --></a>", parser)),
        fed.close().tag, trees[0].getroot().tag, trees[0].docinfo.xml_version, trees[0].getpath(trees[0].getroot()[0]),
    )  # fmt: skip


@both
def test_finding(load):
    etree = load("lxml.etree")
    root = etree.fromstring(XML)
    find = etree.XPath("//child[@n=$n]")
    return (
        root.find("child").get("n"), root.findall("child")[1].get("n"), root.findtext("child/b"), [e.tag for e in root.iter("b", "child")],
        root.xpath("//child/@n"), root.xpath("count(//child)"), root.xpath("//b/text()")[0].getparent().tag, [e.get("n") for e in find(root, n="y")],
        [str(t) for t in root.itertext()], [e.tag for e in root.iterchildren("child")], root.xpath("//b")[0].xpath("..")[0].tag,
        [a.tag for a in root.find(".//b").iterancestors()], root.xpath("//child[1]")[0] is root[0], next(root.iterfind("child")).tag,
        type(root.xpath("//@n")[0]).__name__, root.xpath("boolean(//zz)"), root[-1].text, callable(root[-1].tag), root[-1].tag is etree.Comment,
    )  # fmt: skip


@both
def test_functions_of_the_session(load):
    etree = load("lxml.etree")
    root = etree.fromstring(XML)
    names = etree.FunctionNamespace(None)
    names["shout"] = lambda context, values: values[0].upper() + "!"
    try:
        shouted = root.xpath("shout(//child/@n)")
    finally:
        del names["shout"]
    extended = root.xpath("twice(2)", extensions={(None, "twice"): lambda context, x: x * 2})
    return shouted, extended, sorted(root.iter(etree.Element), key=lambda e: e.tag)[0].tag


@both
def test_events(load):
    etree = load("lxml.etree")
    events = [(event, element.tag) for event, element in etree.iterparse(io.BytesIO(XML), events=("start", "end"))]
    walked = [(event, element.tag) for event, element in etree.iterwalk(etree.XML(XML), events=("start",))]

    class Target:
        def __init__(self):
            self.seen = []

        def start(self, tag, attrib):
            self.seen.append(("start", tag, dict(attrib)))

        def end(self, tag):
            self.seen.append(("end", tag))

        def data(self, data):
            self.seen.append(("data", data))

        def close(self):
            return "done"

    target = Target()
    closed = etree.fromstring(b"<a x='1'>t<b/></a>", etree.XMLParser(target=target))
    pull = etree.XMLPullParser(events=("end",))
    pull.feed("<r><a/>")
    return events, walked[:2], target.seen, closed, [(e, el.tag) for e, el in pull.read_events()]


@both
def test_writing(load):
    etree = load("lxml.etree")
    out = io.BytesIO()
    with etree.xmlfile(out, encoding="utf-8") as file:
        with file.element("root", a="1"):
            for i in range(3):
                with file.element("item"):
                    file.write(str(i))
            file.write(etree.Element("last"))
    return out.getvalue()


@both
def test_builders(load):
    load("lxml")
    builder = load("lxml.builder")
    etree = load("lxml.etree")
    E = builder.E
    page = E.html(E.head(E.title("T")), E.body(E.p("one ", E.b("two"), {"id": "x"}), E.a("link", href="#")))
    NS = builder.ElementMaker(namespace="http://x.y", nsmap={"p": "http://x.y"})
    return etree.tostring(page), etree.tostring(NS.doc(NS.item("1"))), etree.QName("http://x.y", "a").text, page.find(".//p").get("id")


@both
def test_html(load):
    load("lxml")
    load("lxml.etree")
    html = load("lxml.html")
    doc = html.fromstring("<html><body><p class='a'>One<br>two</p><a href='/x'>X</a><form action='/f'><input name='q' value='1'></form></body></html>")
    doc.make_links_absolute("http://h/")
    return (
        doc.xpath("//p")[0].text_content(), [link[2] for link in doc.iterlinks()], html.tostring(doc), doc.forms[0].fields["q"], doc.find_class("a")[0].tag,
        type(doc).__name__, html.fragment_fromstring("<b>x</b>").tag, list(doc.classes), doc.body.tag,
    )  # fmt: skip


@both
def test_transforming_and_checking(load):
    etree = load("lxml.etree")
    style = etree.XML(
        "<xsl:stylesheet version='1.0' xmlns:xsl='http://www.w3.org/1999/XSL/Transform'><xsl:template match='/'><out>"
        "<xsl:value-of select='/*/child'/></out></xsl:template></xsl:stylesheet>"
    )
    schema = etree.XMLSchema(
        etree.XML(
            "<xs:schema xmlns:xs='http://www.w3.org/2001/XMLSchema'><xs:element name='a' type='xs:integer'/></xs:schema>"
        )
    )
    transform = etree.XSLT(style)
    result = transform(etree.XML(XML))
    bad = raises(schema.assertValid, etree.XML("<a>x</a>"))
    return str(result), schema.validate(etree.XML("<a>1</a>")), schema(etree.XML("<a>x</a>")), str(bad), type(bad).__name__, schema.error_log[0].line


@both
def test_own_element_classes(load):
    etree = load("lxml.etree")

    class Honk(etree.ElementBase):
        TAG = "honk"

        @property
        def honking(self):
            return self.get("honking") == "true"

        def _init(self):
            self.set("made", "here")

    lookup = etree.ElementNamespaceClassLookup()
    parser = etree.XMLParser()
    parser.set_element_class_lookup(lookup)
    lookup.get_namespace(None)["honk"] = Honk
    root = etree.XML("<r><honk honking='true'/></r>", parser)
    made = Honk(honking="true")
    return root[0].honking, type(root[0]).__name__, isinstance(root[0], Honk), isinstance(root[0], etree._Element), made.honking, made.tag, etree.tostring(made), root[0].get("made")


@both
def test_own_resolver(load):
    etree = load("lxml.etree")

    class Resolver(etree.Resolver):
        def resolve(self, url, id, context):
            return self.resolve_string("<!ENTITY e 'from the session: %s'>" % url, context)

    parser = etree.XMLParser(load_dtd=True)
    parser.resolvers.add(Resolver())
    return etree.XML(b"<!DOCTYPE d SYSTEM 'x.dtd'><d>&e;</d>", parser).text


@both
def test_errors(load):
    etree = load("lxml.etree")
    broken = raises(etree.fromstring, "<a><b></a>")
    errors = [
        broken, raises(etree.XPath, "//["), raises(lambda: etree.Element("1 2")), raises(lambda: etree.Element("a")[3]), raises(etree.parse, "/no/such.xml"),
        raises(lambda: setattr(etree.Element("a"), "text", "\0")), raises(lambda: etree.XML("<a/>").attrib["x"]), raises(lambda: etree.Element("a").nope),
    ]  # fmt: skip
    recovered = etree.fromstring("<a><b></a>", etree.XMLParser(recover=True))
    return (
        [(type(e).__name__, str(e)) for e in errors], broken.position, broken.lineno, isinstance(broken, SyntaxError), isinstance(broken, etree.LxmlError),
        len(broken.error_log), etree.tostring(recovered),
    )  # fmt: skip


@both
def test_objectify(load):
    load("lxml")
    etree = load("lxml.etree")
    objectify = load("lxml.objectify")
    root = objectify.fromstring("<r><i>5</i><f>1.5</f><s>txt</s><item>1</item><item>2</item></r>")
    root.new = 7
    return root.i + 1, 1 + root.i, root.f * 2, str(root.s), [int(x) for x in root.item], len(root.item), root.i == 5, int(root.new), etree.tostring(root.i), root.s + "!"


@both
def test_copies(load):
    import copy

    etree = load("lxml.etree")
    root = etree.fromstring(XML)
    again = copy.deepcopy(root)
    again.set("a", "9")
    return root.get("a"), etree.tostring(again), copy.copy(root[0]).getparent(), etree.tostring(root) == etree.tostring(copy.deepcopy(root)), etree.LXML_VERSION > (4,)
