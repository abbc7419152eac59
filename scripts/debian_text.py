#!/usr/bin/env python3
"""Turn unpacked Debian packages into training text: JSON lines {"src","text"}, standard library only.

  debian_text.py list demo|books|mid|large|code      print the packages of one tier (for fetch_debian_packages.sh)
  debian_text.py build TIER DIR OUT.jsonl [OUT.txt]   extract them from DIR (made by that), report bytes per package

Tiers: demo < books < mid < large (English prose, each holds the one before); code is apart.
"""
import bz2, glob, gzip, hashlib, html, json, lzma, os, re, struct, subprocess, sys, tarfile, zipfile, zlib

# --- readers -----------------------------------------------------------------------------------------
def rdb_objects(path):
    """Objects of an R lazy-load data base: 4-byte big-endian length, then a zlib stream, one after another."""
    b = open(path, 'rb').read(); i = 0
    while i < len(b):
        n, = struct.unpack('>I', b[i:i+4])
        d = zlib.decompressobj(); out = d.decompress(b[i+4:])
        assert len(out) == n
        yield out
        i = len(b) - len(d.unused_data)

def r_strings(d):
    """Every character vector in one R object (XDR serialisation, version 2 or 3), as lists of str."""
    assert d[:2] == b'X\n'
    pos = 14
    if struct.unpack('>i', d[2:6])[0] == 3:
        pos += 4 + struct.unpack('>i', d[14:18])[0]
    out = []
    def i4():
        nonlocal pos
        pos += 4
        return struct.unpack('>i', d[pos-4:pos])[0]
    def item():
        nonlocal pos
        while True:
            f = i4(); t = f & 255; attr = f & 0x200; tag = f & 0x400
            if t in (254, 253, 252, 251, 250, 249, 242, 241): return None
            if t == 255:
                if not f >> 8: i4()
                return None
            if t == 9:
                n = i4()
                if n < 0: return None
                pos += n
                return d[pos-n:pos].decode('utf8', 'replace')
            if t == 1: return item()
            if t in (2, 3, 5, 6):
                if attr: item()
                if tag: item()
                item()
                continue
            if t == 16: out.append([item() for _ in range(i4())])
            elif t in (19, 20):
                for _ in range(i4()): item()
            elif t in (10, 13): pos += 4 * i4()
            elif t == 14: pos += 8 * i4()
            elif t == 24: pos += i4()
            else: raise ValueError(f'R type {t} at {pos}')
            if attr: item()
            return None
    item()
    return out

def sword_blocks(d):
    """Text of one compressed SWORD module folder: 12-byte (offset, size, unpacked size) index over zlib blocks."""
    for f in sorted(glob.glob(d + '/*.[cb]zs')):
        idx = open(f, 'rb').read(); z = open(f[:-1] + 'z', 'rb').read()
        for i in range(0, len(idx) - 11, 12):
            off, size, _ = struct.unpack('<III', idx[i:i+12])
            if size: yield zlib.decompress(z[off:off+size]).decode('utf8', 'replace')

DROP = re.compile(r'<(script|style|nav|head|noscript|svg|button|select|header|footer)\b.*?</\1\s*>|<!--.*?-->', re.S | re.I)
BLOCK = re.compile(r'</?(p|div|li|tr|table|ul|ol|h[1-6]|pre|br|dt|dd|dl|section|blockquote|hr|title|article|main|para|entry|item|listitem|page|verse|chapter|lg|l|lb)\b[^>]*>', re.I)
TAG = re.compile(r'<[^>]+>')
def untag(t): return html.unescape(TAG.sub('', BLOCK.sub('\n\n', DROP.sub(' ', t))))

def roff(t):
    o = []
    for l in t.split('\n'):
        if l[:1] in ".'":
            p = l[1:].split(None, 1) or ['']; m = p[0]; a = p[1].replace('"', '') if len(p) > 1 else ''
            if m in ('SH', 'SS', 'Sh', 'Ss', 'IP', 'It'): o.append('\n' + a)
            elif m in ('PP', 'P', 'LP', 'Pp', 'TP', 'br', 'sp'): o.append('')
            elif m in ('B','I','BR','IR','RB','RI','BI','IB','SM','SB','Nm','Nd','Fl','Ar','Xr','Pa','Em','Sy','Dv','Cm','Li','Ql','Dq'): o.append(a)
            continue
        o.append(l)
    t = re.sub(r'\\f[BIPR]|\\f\(..|\\f\[[^\]]*\]|\\s[-+]?\d|\\[&/,c]', '', '\n'.join(o))
    for a, b in (('\\-', '-'), ('\\(aq', "'"), ('\\e', '\\'), ('\\(em', '--'), ('\\(bu', '*'), ('\\ ', ' '), ('\\(lq', '"'), ('\\(rq', '"')): t = t.replace(a, b)
    return t

STOP = set('the of and to a in is that for it as with be by this are or on an not from which can will'.split())
def is_prose(q):
    """English running text: at least 8 words, two letters in three, one word in eight a function word."""
    w = re.findall(r"[A-Za-z']+", q)
    if len(w) < 8 or sum(map(len, w)) < 0.65 * len(q.replace(' ', '')): return False
    return sum(x.lower() in STOP for x in w) >= max(2, 0.12 * len(w))

def read(path):
    b = open(path, 'rb').read()
    for ext, f in (('.gz', gzip.decompress), ('.bz2', bz2.decompress), ('.xz', lzma.decompress)):
        if path.endswith(ext): return path[:-len(ext)], f(b)
    return path, b

def doc_text(path):
    """Plain text of one documentation file, or None for anything else."""
    if not re.search(r'\.(html?|xhtml|xml|page|docbook|txt|md|rst|texi|pod|org|adoc|info(-\d+)?)(\.gz)?$|/man/|/info/', path): return None
    try: p, b = read(path)
    except Exception: return None
    if b'\0' in b[:4096]: return None
    t = b.decode('utf8', 'replace')
    if t.count('\ufffd') > len(t) // 100: t = b.decode('latin1')
    p = p.lower()
    if p.endswith(('.html', '.htm', '.xhtml', '.xml', '.page', '.docbook')): return untag(t)
    if '/man/' in p: return roff(t)
    return t

# --- documents of each kind ---------------------------------------------------------------------------
seen = set()
def fresh(q):
    h = hashlib.blake2b(q.encode('utf8', 'replace'), digest_size=8).digest()
    if h in seen: return False
    seen.add(h)
    return True
def squeeze(q): return re.sub(r'\s+', ' ', q).strip()

def k_austen(root):
    for o in rdb_objects(glob.glob(root + '/usr/lib/R/site-library/*/data/Rdata.rdb')[0]):
        yield '\n'.join(max(r_strings(o), key=len))
def k_moby(root):
    for o in rdb_objects(glob.glob(root + '/usr/lib/R/site-library/*/data/Rdata.rdb')[0]):
        t = max((s for v in r_strings(o) for s in v), key=len).replace('\r\n', '\n')
        a = re.search(r'\*\*\* ?START OF.*?\*\*\*', t, re.S); e = re.search(r'\*\*\* ?END OF|End of (the )?Project Gutenberg', t)
        yield t[a.end() if a else 0: e.start() if e else None].strip()
def k_file(pattern, start, end=None):
    def f(root):
        for p in sorted(glob.glob(root + pattern, recursive=True)):
            t = open(p, encoding='utf8', errors='replace').read().replace('\r\n', '\n')
            i = t.find(start); j = t.find(end) if end else -1
            yield t[max(i, 0): j if j > 0 else None].strip()
    return f
def k_kjv(root):
    """The package's own program prints the text; it and its data come from two packages, both unpacked."""
    out = subprocess.run([root + '/usr/bin/bible', '-p', root + '-text/usr/lib', '-f', 'gen1:1-rev22:21'], capture_output=True, text=True, check=True).stdout
    books = {}
    for l in out.splitlines():
        m = re.match(r'(\S+?)(\d+):(\d+) (.*)', l)
        if m: books.setdefault(m[1], []).append(('\n' if m[3] == '1' else '') + m[4])
    for b in books.values(): yield '\n'.join(b).strip()
def k_sword(root):
    for d in sorted({os.path.dirname(f) for f in glob.glob(root + '/usr/share/sword/modules/**/*.[cb]zs', recursive=True)}):
        for t in sword_blocks(d):
            t = untag(re.sub(r'<note\b.*?</note>', '', t, flags=re.S)).replace('\\', '')
            t = '\n\n'.join(q for q in map(squeeze, re.split(r'\n\s*\n', t)) if q)
            if len(t) > 200: yield t
def k_dict(pattern):
    def f(root):
        for p in sorted(glob.glob(root + '/usr/share/dictd/*.dict.dz')):
            t = gzip.open(p).read().decode('utf8', 'replace')
            t = re.sub(r'\s*\[(1913 Webster|PJC|WordNet[^\]]*|Century Dict[^\]]*|Webster 1913 Suppl\.|Webster Suppl\.|RP|AS|RDH|Webster 1890)\b[^\]]*\]', '', t).replace('{', '').replace('}', '')
            for e in re.split(pattern, t):
                e = '\n'.join(q for q in map(squeeze, re.split(r'\n\s*\n', e)) if q)
                if len(e) > 80 and fresh(e): yield e
    return f
def k_wordnet(root):
    for pos in ('noun', 'verb', 'adj', 'adv'):
        for p in glob.glob(root + f'/usr/share/wordnet/data.{pos}') + glob.glob(root + f'/usr/share/wordnet*/dict/data.{pos}'):
            for l in open(p, encoding='utf8', errors='replace'):
                if l[:1] == ' ' or ' | ' not in l: continue
                h, g = l.split(' | ', 1); w = h.split(); n = int(w[3], 16)
                yield ', '.join(x.replace('_', ' ').split('(')[0] for x in w[4:4+2*n:2]) + ': ' + squeeze(g)
def k_fortune(root):
    for p in sorted(glob.glob(root + '/usr/share/games/fortunes/*')):
        if p.endswith(('.dat', '.u8')) or os.path.islink(p) or os.path.isdir(p): continue
        for q in open(p, encoding='utf8', errors='replace').read().split('\n%\n'):
            if len(q.strip()) > 20 and fresh(squeeze(q)): yield q.strip()
def k_descriptions(_):
    """Long descriptions of every Debian package: `apt-get update -o Acquire::Languages=en` fetches them."""
    lists = sorted(glob.glob(os.environ.get('APT_LISTS', '/var/lib/apt/lists') + '/*i18n_Translation-en*'))
    for f in lists:
        raw = subprocess.run(['/usr/lib/apt/apt-helper', 'cat-file', f], capture_output=True, text=True).stdout
        for s in raw.split('\n\n'):
            i = s.find('Description-en: ')
            if i < 0: continue
            h, _, body = s[i+16:].partition('\n')
            ps = [q for q in map(squeeze, re.split(r'\n \.\n', body)) if len(q) > 40 and fresh(q)]
            if ps: yield '\n\n'.join(ps)
def k_cdda(root):
    for p in sorted(glob.glob(root + '/usr/share/games/cataclysm-dda/json/**/*.json', recursive=True)):
        out = []
        def walk(o):
            if isinstance(o, str):
                if len(o) > 60 and is_prose(o) and fresh(o): out.append(re.sub(r'</?color[^>]*>', '', o))
            elif isinstance(o, list): [walk(x) for x in o]
            elif isinstance(o, dict): [walk(x) for x in o.values()]
        try: walk(json.load(open(p)))
        except ValueError: continue
        if out: yield '\n\n'.join(out)
def k_docs(skip=None):
    def f(root):
        for dp, dn, fn in sorted(os.walk(root + '/usr/share')):
            dn.sort()
            for n in sorted(fn):
                p = os.path.join(dp, n)
                if os.path.islink(p) or re.match(r'(copyright|changelog|genindex|search|NEWS)', n) or (skip and re.search(skip, p)): continue
                t = doc_text(p)
                if not t: continue
                ps = [q for q in map(squeeze, re.split(r'\n\s*\n', t.replace('\u00b6', ''))) if len(q) > 40 and is_prose(q) and fresh(q)]
                if sum(map(len, ps)) > 200: yield '\n\n'.join(ps)
    return f
def k_tar(pattern, want, drop):
    def f(root):
        with tarfile.open(glob.glob(root + pattern)[0]) as t:
            for m in t:
                if m.isfile() and m.size < 1 << 20 and re.search(want, m.name) and not re.search(drop, m.name):
                    s = t.extractfile(m).read().decode('utf8', 'replace')
                    if len(s) > 100 and fresh(s): yield s
    return f
def k_zip(pattern, want):
    def f(root):
        z = zipfile.ZipFile(glob.glob(root + pattern)[0])
        for i in z.infolist():
            if re.search(want, i.filename) and 100 < i.file_size < 1 << 20:
                s = z.read(i).decode('utf8', 'replace')
                if fresh(s): yield s
    return f
def k_code(want, drop='$^'):
    def f(root):
        for dp, dn, fn in os.walk(root):
            dn.sort()
            for n in sorted(fn):
                p = os.path.join(dp, n)
                if re.search(want, p) and not re.search(drop, p) and not os.path.islink(p) and 100 < os.path.getsize(p) < 1 << 20:
                    s = open(p, encoding='utf8', errors='replace').read()
                    if fresh(s): yield s
    return f

TIERS = {
 'demo': [('r-cran-janeaustenr', k_austen)],
 'books': [('r-cran-tokenizers', k_moby),
   ('golang-1.19-src', k_file('/usr/share/go-*/src/testdata/Isaac.Newton-Opticks.txt', 'OPTICKS:')),
   ('golang-github-klauspost-compress-dev', k_file('/usr/share/gocode/src/github.com/klauspost/compress/testdata/Mark.Twain-Tom.Sawyer.txt', 'THE ADVENTURES', 'End of the Project Gutenberg')),
   ('bible-kjv', k_kjv), ('bible-kjv-text', None), ('sword-text-web', k_sword), ('sword-comm-tdavid', k_sword), ('sword-comm-mhcc', k_sword), ('sword-comm-scofield', k_sword),
   ('anarchism', k_docs(r'\.(tex|md|txt)(\.gz)?$|/markdown/')), ('cfi-en', k_docs()), ('dict-devil', k_dict(r'\n\n(?=[A-Z]{3,})')), ('fortunes', k_fortune), ('fortunes-min', k_fortune), ('cataclysm-dda-data', k_cdda)],
 'mid': [('dict-gcide', k_dict(r'\n(?=\S)')), ('wordnet-base', k_wordnet), ('dict-foldoc', k_dict(r'\n(?=\S)')), ('jargon-text', k_docs()), ('(apt descriptions)', k_descriptions),
   ('mh-book', k_docs()), ('png-definitive-guide', k_docs()), ('abs-guide', k_docs()), ('c++-annotations-txt', k_docs()), ('debian-handbook', k_docs()), ('debian-policy', k_docs()), ('developers-reference', k_docs()), ('debian-reference-en', k_docs()),
   ('perl-doc', k_docs()), ('postgresql-doc-15', k_docs()), ('git-doc', k_docs()), ('sqlite3-doc', k_docs()), ('manpages', k_docs()), ('manpages-dev', k_docs()), ('libreoffice-help-en-us', k_docs()), ('ada-reference-manual-2012', k_docs())],
 'large': [(p, k_docs(r'/_sources/')) for p in '''python3.11-doc linux-doc-6.1 vim-runtime ghc-doc openjdk-17-doc rust-doc sagemath-doc ssg-nondebian racket-doc erlang-doc qtbase5-doc-html python-sqlalchemy-doc llvm-15-doc
   python-pandas-doc python-django-doc db5.3-doc cmake-doc libboost1.74-doc twisted-doc cppreference-doc-en-html freebsd-manpages libstdc++-12-doc octave-doc fp-docs-3.2.2 gap-doc python-scipy-doc grass-doc maxima-doc
   lilypond-doc-html csound-doc nova-doc neutron-doc keystone-doc kea-doc pike8.0-doc apache2-doc libssl-doc postfix-doc exim4-doc-html bind9-doc r-doc-html imagemagick-6-doc dar-docs gnome-devel-docs gnome-user-docs installation-guide-amd64'''.split()],
}
CODE = [('linux-source-6.1', k_tar('/usr/src/linux-source-*.tar.xz', r'\.(c|h|S|rst|py|sh|rs)$', r'amd/include|/asic_reg/|\.mod\.c|vmlinux\.h')),
  ('gcc-12-source', k_tar('/usr/src/gcc-12/gcc-12*.tar.xz', r'\.(c|cc|h|adb|ads|go|d|f90|texi|def|md)$', r'/testsuite/|amd/include')),
  ('openjdk-17-source', k_zip('/usr/lib/jvm/openjdk-17/lib/src.zip', r'\.java$')), ('golang-1.19-src', k_code(r'\.go$')), ('rust-src', k_code(r'\.(rs|md)$')),
  ('fpc-source-3.2.2', k_code(r'\.(pas|pp|inc)$')), ('acl2-books-source', k_code(r'\.(lisp|acl2)$')), ('libpython3.11-stdlib', k_code(r'\.py$'))]
def sources(tier):
    if tier == 'code': return CODE
    out = []
    for t in ('demo', 'books', 'mid', 'large'):
        out += TIERS[t]
        if t == tier: return out

def main():
    if sys.argv[1] == 'list':
        print(' '.join(p for p, _ in sources(sys.argv[2]) if p[0] != '('))
        return
    tier, root, out = sys.argv[2:5]; total = 0
    plain = open(sys.argv[5], 'w') if len(sys.argv) > 5 else None
    with open(out, 'w') as f:
        for p, kind in sources(tier):
            if not kind: continue
            n = b = 0
            for t in kind(os.path.join(root, p)):
                t = t.encode('utf8', 'replace').decode('utf8')
                f.write(json.dumps({'src': p, 'text': t}, ensure_ascii=False) + '\n'); n += 1; b += len(t.encode('utf8'))
                if plain: plain.write(t + '\n\n\n')
            total += b
            print(f'{p:40s} {n:8d} documents {b/1e6:9.2f} MB', flush=True)
    print(f'{"total":40s} {"":8s}           {total/1e6:9.2f} MB')
main()
