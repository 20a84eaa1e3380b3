# ruff: noqa: E501
"""Strings that have broken other programs, about 600 of them: each is somebody's way into a path, a statement, a
shell, a template, a terminal, a parser, or past a comparison of names."""

import itertools
import unicodedata

_COMMANDS = ["id", "touch pwned", "cat /etc/passwd"]
_PATHS = ["/etc/passwd", "etc/passwd", "pwned", "tmp/pwned", "log.db", ".ssh/authorized_keys"]


def _paths() -> list[str]:
    ups = ["../", "..\\", "....//", "..%2f", "%2e%2e/", "..%c0%af", "..;/", "./", "~/", "//", "/", "\\\\host\\", "C:\\",
           "file:///", "\uff0e\uff0e\uff0f", "..\u2215", "..\x00/"]
    return [up * count + path for up in ups for count in (1, 4) for path in _PATHS[1:4]] + [
        ".", "..", "...", "-", "--", "-rf", "--help", "~", "~root", "CON", "NUL", "aux.txt", "a/", "/a", "a//b", "a/./b",
        "a/../b", "log.db-wal", "log.db\x00.txt", ".hidden", "a.", "a ", " a", "nul\x00l", *_PATHS]


def _statements() -> list[str]:
    return ["'", '"', "`", "''", '""', "\\'", "' OR '1'='1", "' OR 1=1 --", "'; DROP TABLE event; --",
            '"; DROP TABLE event; --', "1; DELETE FROM event", "') UNION SELECT body FROM event --", "' AND sleep(9)--",
            "%' OR body LIKE '%", "x' || load_extension('a') || '", "ATTACH DATABASE 'pwned' AS p", "?1", ":name", "@p",
            "$p", "%s", "NULL", "null", "x'00'", "1e309", "/* */", "--", ";", "_", "%", "\\%", "[event]", "sqlite_master",
            "PRAGMA writable_schema=1", "'||(SELECT 1)||'", "1 OR 1", "CASE WHEN 1 THEN 1 END", "\u02bc OR 1=1", "0x27"]


def _shells() -> list[str]:
    forms = ["$({})", "`{}`", ";{}", "|{}", "||{}", "&&{}", "&{}", "\n{}", ">{}", "<({})", "${{IFS}}{}", "'$({})'", '"`{}`"',
             "() {{ :;}}; {}", "{}\r\n", "-oProxyCommand={}", "@{}", "!{}", "%0a{}", "${{{}}}", "$(({}))"]
    return [form.format(command) for form in forms for command in _COMMANDS] + [
        "$HOME", "$PATH", "${BAYESD_PARAMS}", "*", "?", "[a-z]", "{a,b}", "#", "\\", "$$", "$!", "!!", "^", "\t", "\v"]


def _templates() -> list[str]:
    return ["%n", "%x" * 30, "%99999999s", "%(x)s", "{}", "{0}", "{x}", "{lr", "}", "{{x}}", "{x.__class__}",
            "{0.__class__.__mro__}", "{x!r:>1000000}", "{:>{width}}", "${x}", "#{7*7}", "{{7*7}}", "{%raw%}", "<%= 7*7 %>",
            "${7*7}", "{{config}}", "{{''.__class__}}", "${jndi:ldap://127.0.0.1/a}", "__import__('os').system('id')",
            "().__class__.__bases__[0]", "lambda: 0", "eval('1')", "exec", "__class__", "__proto__", "constructor",
            "prototype.polluted", "!!python/object/apply:os.system [id]", "&a *a", "<<: *a", "cos\nsystem\n(S'id'\ntR.",
            "<script>alert(1)</script>", "<img src=x onerror=1>", "javascript:alert(1)", "=1+1", "=cmd|'/c x'!A0", "+1",
            "@SUM(1)", "[link](javascript:1)", "[bold red]x[/]", "[/]", "[link=file:///etc]x[/link]", "|a|b|", "<!--",
            "]]>", "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>", "&lt;", "&#0;", "\\u0041", "\\x41", "\\N{DIGIT ONE}"]


def _controls() -> list[str]:
    alone = [chr(each) for each in (*range(32), *range(127, 160))]
    terminal = ["\x1b[2J", "\x1b]0;title\x07", "\x1b]52;c;aWQ=\x07", "\x1b[31mred", "\x9b2J", "\x1b]8;;file:///\x1b\\x",
                "a\rb", "a\bb", "\r\nSet-Cookie: a", "a\r\n\r\nb", "a\0b", "\0", "line\nline", "info: ready\nerror: no"]
    return alone + terminal


def _letters() -> list[str]:
    bidi = ["\u202e", "\u202d", "\u2066", "\u2067", "\u2069", "\u200e", "\u200f", "\u061c"]
    hidden = ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u034f", "\u180e", "\u115f", "\u3164", "\ufffe",
              "\uffff", "\ufffd", "\ue000", "\U000e0041", "\U0010ffff", "\ufe0f"]
    alike = ["w\u0456", "\u0440ump", "\u0430lice", "\u03bf", "\uff571", "w\u00b9", "w\u2460", "w\u0661", "\u217c", "I\u0307",
             "\u0131", "\u017f1", "\u212a", "\u00df", "\ufb01", "\u1e9e", "\u01c4", "A\u030a", "\u00c5", "\u212b",
             "\u1112\u1161\u11ab", "\ud55c", "e\u0301", "\u00e9", "\u0f40\u0f90\u0fb5", "\U0001d41e", "\U0001f468\u200d\U0001f4bb",
             "\U0001f600", "\U0001f1e9\U0001f1ea", "\u0e01\u0e33", "\u05d0\u05d1", "\u0627\u0644", "\u4e2d\u6587", "a" + "\u0301" * 200]
    folded = [unicodedata.normalize(form, each) for form in ("NFKC", "NFD") for each in alike[:24]]
    return ([f"w1{each}" for each in (*bidi, *hidden)] + [f"{each}w1" for each in (*bidi, *hidden)] + bidi + hidden
            + alike + folded)


def _topics() -> list[str]:
    return ["+", "#", "$SYS", "$CONTROL", "$share/g/a", "w1/+", "w1/#", "+/tell", "w2/tell", "/w2", "w2/", "a/b/c", "w1/../w2",
            "bayesd/1/to/w2/grant", "../to/w2", "to/w2/grant", "daemon", "head", "w1\x00", "w1#", "w1+", "$w1", "%u", "%c", "w1/",
            "//", "w1//tell"]


def _json() -> list[str]:
    return ['{"a":1}', "[1]", '"x"', '\\"', '","study":"s2', '"}', "}{", "\\u0000", "\\ud800", "\\", "true", "false", "null",
            "NaN", "Infinity", "-Infinity", "undefined", '{"__proto__":1}', "[[[[", "{" * 40, "[" * 3000, "//comment", "'a'",
            "a,b", "a:b", "\u2028", "\u2029", "\ufeff{}"]


def _numbers() -> list[str]:
    return ["0", "1", "-1", "-0", "00", "01", "1.0", "1e3", "1e309", "-1e309", "1e-400", "9" * 20, "9" * 400, "0x10", "0b1",
            "1_000", "1,000", "1 000", "\u0661", "\u00bd", "\u2460", "1.", ".5", "+1", "1e", "2147483648", "9007199254740993",
            "18446744073709551616", "NaN", "nan", "inf", "-inf", "1/0", "0.1.2", "1;2", "1\n2", "\u22121", "1\u00a0"]


def _long() -> list[str]:
    return ["", " ", "  ", "a" * 64, "a" * 65, "a" * 129, "a" * 256, "a" * 4097, "a" * 20_000, "\u4e2d" * 3000, "\U0001f600" * 2000,
            "a" * 63 + "\u00e9", "../" * 2000, "(" * 2000, "\x1b[31m" * 500, "%s" * 1000, "'" * 1000, "\n" * 1000, "A", "W1", "_a",
            "-a", ".a", "a\n", "a\r", "\na", "a\tb"]


STRINGS: list[str] = list(dict.fromkeys(itertools.chain(
    _paths(), _statements(), _shells(), _templates(), _controls(), _letters(), _topics(), _json(), _numbers(), _long())))
