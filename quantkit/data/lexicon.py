"""The words of the built-in data: Indonesian nouns, sentiment words and chat spellings.

The `rare_` words never occur in the train split. They stand for what a model meets after
training: a noun it has not seen, or a sentiment it has to guess from the rest of the text.
"""

from dataclasses import dataclass

__all__ = [
    "BEFORE",
    "CASUAL_AFTER",
    "CASUAL_SPELLINGS",
    "CLOSERS",
    "DAYS",
    "DOMAINS",
    "FORMAL_AFTER",
    "GENERAL",
    "MOODS",
    "OPENERS",
    "PLACES",
    "SETTINGS",
    "VERDICTS",
    "Polar",
    "Topic",
]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(","))


@dataclass(frozen=True)
class Polar:
    """Words or phrases of one kind, by the sentiment they carry."""

    good: tuple[str, ...]
    bad: tuple[str, ...]
    rare_good: tuple[str, ...] = ()
    rare_bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topic:
    """Nouns that share their sentiment words.

    The `phrases` are whole clauses in which a noun decides what an adjective is worth:
    soup may be hot, a phone may not. Names in braces are places for other words.
    """

    nouns: tuple[str, ...]
    rare_nouns: tuple[str, ...]
    words: Polar
    phrases: Polar
    facts: tuple[str, ...]  # without a sentiment


GENERAL = Polar(
    good=_listed(
        "bagus, baik, memuaskan, luar biasa, keren, oke, mantap, hebat, istimewa, juara, asyik, "
        "menyenangkan, sempurna, top, berkualitas"
    ),
    bad=_listed(
        "buruk, jelek, mengecewakan, parah, payah, hancur, mengerikan, menyebalkan, memalukan, "
        "bermasalah, berantakan, mengesalkan, asal-asalan, rendah mutunya, gagal"
    ),
    rare_good=_listed("ciamik, jempolan, yahud"),
    rare_bad=_listed("ampas, amburadul, bobrok"),
)

FOOD = Topic(
    nouns=_listed(
        "makanan, kopi, sate, soto, nasi goreng, ayam bakar, sambal, bakso, kue, mi ayam, "
        "rendang, es teh, ikan bakar, martabak, gado-gado"
    ),
    rare_nouns=_listed("pempek, rawon, seblak"),
    words=Polar(
        _listed("enak, lezat, gurih, nikmat, sedap, segar, pas bumbunya, empuk, harum"),
        _listed("hambar, basi, keasinan, amis, alot, gosong, eneg, bau, keras, mentah"),
        _listed("maknyus, renyah"),
        _listed("tengik, anyep"),
    ),
    phrases=Polar(
        _listed("kuahnya panas dan segar, pedasnya pas, porsinya besar, harganya murah"),
        _listed("makanannya sudah dingin, pedasnya tidak kira-kira, porsinya kecil"),
    ),
    facts=_listed(
        "{noun} dimasak dari jam {hour}, {noun} ada di menu hari {day}, resep {noun} dari "
        "{place}, seporsi {noun} {price} ribu, {noun} {good} atau {bad} tergantung selera, "
        "lomba {noun} paling {good} digelar hari {day}"
    ),
)

ROOMS = Topic(
    nouns=_listed(
        "kamar, kamar mandi, lobi, kolam renang, toilet, ruang tunggu, kasur, hotel, vila, "
        "taman, pantai, studio, musala, kafe"
    ),
    rare_nouns=_listed("balkon, penginapan, gazebo"),
    words=Polar(
        _listed("bersih, nyaman, rapi, wangi, luas, asri, terawat, indah, tenang, strategis"),
        _listed("kotor, bau, pengap, sempit, berisik, kumuh, lembap, berdebu, bocor, gelap"),
        _listed("sejuk, resik"),
        _listed("jorok, sumpek"),
    ),
    phrases=Polar(
        _listed("ac nya dingin, air panasnya lancar, kasurnya empuk, dekat ke mana-mana"),
        _listed("ac nya panas, air panasnya mati, kasurnya keras, jauh dari mana-mana"),
    ),
    facts=_listed(
        "{noun} dibuka jam {hour}, {noun} ada di lantai dua, tarif {noun} naik atau turun "
        "tergantung musim, sewa {noun} {price} ribu sehari, {noun} dicat ulang hari {day}, "
        "foto {noun} yang {good} dan yang {bad} dipajang"
    ),
)

DEVICES = Topic(
    nouns=_listed(
        "hp, layar, kamera, baterai, speaker, laptop, aplikasi, fitur, sinyal, wifi, game, "
        "keyboard, printer, sistem"
    ),
    rare_nouns=_listed("gawai, mikrofon, modem"),
    words=Polar(
        _listed("awet, jernih, lancar, tajam, responsif, kencang, stabil, canggih, ringan"),
        _listed("lemot, boros, buram, rusak, macet, error, putus-putus, ribet, lambat"),
        _listed("ngebut, mulus"),
        _listed("ngadat, butut"),
    ),
    phrases=Polar(
        _listed("baterainya tahan lama, layarnya besar, bodinya tipis, isi dayanya cepat"),
        _listed(
            "baterainya cepat habis, hp nya cepat panas, suaranya kecil, sering keluar sendiri"
        ),
    ),
    facts=_listed(
        "{noun} dirilis hari {day}, pengaturan {noun} ada di menu kedua, {noun} keluaran tahun "
        "lalu, tips supaya {noun} tidak {bad} dimuat hari {day}, {noun} {good} atau {bad} "
        "tergantung pemakaian, {noun} diperbarui jam {hour}"
    ),
)

SERVICE = Topic(
    nouns=_listed(
        "pelayanan, staf, kasir, kurir, pelayan, petugas, satpam, dokter, sopir, admin, "
        "resepsionis, penjual, teknisi, perawat"
    ),
    rare_nouns=_listed("pramusaji, montir, bidan"),
    words=Polar(
        _listed("ramah, sopan, sigap, tanggap, sabar, profesional, jujur, teliti, cepat"),
        _listed("kasar, jutek, lambat, cuek, galak, sombong, lalai, judes, malas"),
        _listed("santun, cekatan"),
        _listed("ketus, lelet"),
    ),
    phrases=Polar(
        _listed("keluhan saya cepat ditanggapi, selalu tersenyum, dijawab dengan jelas"),
        _listed("keluhan saya lama ditanggapi, pesan saya cuma dibaca, dijawab asal saja"),
    ),
    facts=_listed(
        "{noun} masuk kerja jam {hour}, {noun} diganti setiap {day}, {noun} berjumlah {hour} "
        "orang, lowongan {noun} di {place}, pelatihan supaya {noun} tidak {bad} mulai hari "
        "{day}, pemilihan {noun} paling {good} di {place}"
    ),
)

SHOWS = Topic(
    nouns=_listed(
        "film, alur cerita, akting, lagu, musik, konser, novel, episode, acara, pameran, "
        "sinetron, buku, serial, pertandingan"
    ),
    rare_nouns=_listed("komik, drama, siniar"),
    words=Polar(
        _listed("seru, lucu, menarik, menghibur, mengharukan, memukau, segar, menegangkan"),
        _listed("membosankan, garing, datar, klise, bertele-tele, membingungkan, norak"),
        _listed("apik, epik"),
        _listed("receh, hampa"),
    ),
    phrases=Polar(
        _listed("ceritanya bikin nangis haru, durasi dua jam tidak terasa, ditonton dua kali"),
        _listed("saya sampai ketiduran, durasi dua jam terasa lama, ceritanya bikin pusing"),
    ),
    facts=_listed(
        "{noun} tayang hari {day}, {noun} mulai jam {hour}, tiket {noun} {price} ribu, {noun} "
        "{good} atau {bad} tergantung selera, {noun} dibuat di {place}, penghargaan untuk "
        "{noun} paling {good} diumumkan {day}"
    ),
)

GOODS = Topic(
    nouns=_listed(
        "barang, kemasan, paket, sepatu, baju, bahan, jahitan, tas, jaket, pengiriman, "
        "jilbab, celana, mainan, jam tangan"
    ),
    rare_nouns=_listed("gamis, sandal, ransel"),
    words=Polar(
        _listed("rapi, awet, halus, tebal, aman, utuh, asli, sesuai foto, kuat, cocok"),
        _listed("penyok, sobek, cacat, tipis, palsu, luntur, retak, kusam, kasar, kebesaran"),
        _listed("kokoh, adem"),
        _listed("apkir, melar"),
    ),
    phrases=Polar(
        _listed("sampainya lebih cepat dari janji, bonusnya banyak, harganya murah"),
        _listed("sampainya lebih lama dari janji, barangnya kurang satu, murahan bahannya"),
    ),
    facts=_listed(
        "{noun} dikirim dari {place}, {noun} tersedia dua warna, {noun} tiba hari {day}, harga "
        "{noun} mahal atau murah tergantung ukuran, {noun} yang {bad} bisa ditukar di {place}, "
        "cara membedakan {noun} yang {good} dan yang {bad}"
    ),
)

PUBLIC = Topic(
    nouns=_listed(
        "antrean, jalan, jembatan, halte, layanan ktp, program bantuan, listrik, air bersih, "
        "puskesmas, kereta, bus kota, parkiran, kelurahan, posyandu"
    ),
    rare_nouns=_listed("trotoar, samsat, angkot"),
    words=Polar(
        _listed("lancar, tertib, cepat, transparan, mudah, teratur, merata, aman, modern"),
        _listed("lambat, semrawut, berbelit-belit, macet, rusak, kacau, rawan, sering mati"),
        _listed("gesit, tertata"),
        _listed("mangkrak, kisruh"),
    ),
    phrases=Polar(
        _listed("urusannya selesai sehari, tidak ada pungutan, datangnya tepat waktu"),
        _listed("urusannya tidak selesai-selesai, ada saja pungutan, datangnya selalu telat"),
    ),
    facts=_listed(
        "{noun} dipindah ke {place}, {noun} dibuka lagi hari {day}, {noun} di {place} mulai "
        "jam {hour}, petugas mencatat {noun} yang {bad} di {place}, warga ditanya {noun} "
        "{good} atau {bad}, anggaran {noun} dibahas hari {day}"
    ),
)

# What one text talks about.
DOMAINS = (
    (FOOD, ROOMS, SERVICE),  # a restaurant
    (ROOMS, SERVICE, FOOD),  # a hotel
    (DEVICES, SERVICE),  # a phone or an app
    (GOODS, SERVICE),  # an order that was delivered
    (SHOWS, ROOMS),  # an evening out
    (PUBLIC, SERVICE),  # an office or a road
)

MOODS = Polar(
    good=_listed(
        "puas, senang, bahagia, bangga, kagum, suka, betah, terkesan, terbantu, bersyukur"
    ),
    bad=_listed("kecewa, kesal, menyesal, jengkel, marah, sedih, malu, kapok, muak, dirugikan"),
    rare_good=_listed("girang, lega"),
    rare_bad=_listed("dongkol, geram"),
)

VERDICTS = Polar(
    good=_listed(
        "pasti balik lagi, wajib dicoba, saya rekomendasikan, layak dapat bintang lima, "
        "semoga sukses terus, tidak rugi ke sini, jadi langganan, terima kasih banyak, "
        "tidak akan pindah ke tempat lain, pertahankan"
    ),
    bad=_listed(
        "tidak akan balik lagi, jangan dicoba, buang-buang uang, satu bintang saja, "
        "tolong diperbaiki, rugi datang ke sini, cukup sekali ini, minta uang kembali, "
        "mending cari tempat lain, sudah berkali-kali begini"
    ),
    rare_good=_listed("mantul pokoknya, bikin nagih"),
    rare_bad=_listed("zonk pokoknya, bikin emosi"),
)

BEFORE = _listed("sangat, benar-benar, memang, sungguh, selalu")
FORMAL_AFTER = _listed("sekali, betul")
CASUAL_AFTER = _listed("banget, sekali, abis, pol")

PLACES = _listed(
    "bandung, jakarta, surabaya, malang, cabang dago, mal, pasar baru, bandara, stasiun, "
    "toko ini, sini, solo, kantor pusat, depok, medan, rumah sakit"
)
DAYS = _listed("senin, selasa, rabu, kamis, jumat, sabtu, minggu")

# What stands before and after says nothing about the sentiment.
OPENERS = _listed(
    "jujur, menurut saya, kalau kata saya, secara umum, pertama kali ke sini, min, sejauh ini, "
    "setelah sebulan pakai, jadi begini, sekadar info, overall, pendapat pribadi"
)
SETTINGS = _listed(
    "kemarin datang sama keluarga, habis dari {place} hari {day}, pesan dua porsi buat berdua, "
    "sudah pakai sejak {day}, dapat info dari teman kantor, mampir sebentar sepulang kerja, "
    "baru pertama kali beli, tadi sore ke {place}, menginap dua malam di {place}, "
    "nonton bareng adik hari {day}, antre dari jam {hour}, bayar {price} ribu"
)
CLOSERS = _listed("ya, sih, kok, deh, lho, hehe, wkwk, gaes, begitu saja, sekian, pokoknya, min")

# The usual spelling and what people type instead.
CASUAL_SPELLINGS: dict[str, tuple[str, ...]] = {
    "tidak": ("gak", "ga", "nggak", "tdk", "enggak", "ngga"),
    "banget": ("bgt", "bangett", "bngt"),
    "sangat": ("sgt", "sangaat"),
    "sekali": ("skali", "skli"),
    "yang": ("yg",),
    "dengan": ("dgn", "sama"),
    "saya": ("sy", "aku", "gue", "gw"),
    "sudah": ("udah", "udh", "dah", "sdh"),
    "tapi": ("tp", "tpi"),
    "namun": ("tapi", "cuma"),
    "juga": ("jg",),
    "untuk": ("utk", "buat"),
    "kalau": ("kalo", "klo"),
    "karena": ("krn", "soalnya"),
    "orang": ("org",),
    "bagus": ("bgus", "bgs", "baguss"),
    "jelek": ("jlek", "jelekk"),
    "enak": ("enakk", "enk"),
    "cepat": ("cepet", "cpt"),
    "lambat": ("lambatt", "lmbt"),
    "ramah": ("ramahh", "rmh"),
    "bersih": ("bersihh", "brsih"),
    "kotor": ("kotorr", "ktor"),
    "kecewa": ("kcewa", "kecewaa"),
    "puas": ("puass", "puaas"),
    "kurang": ("krg", "kurg"),
    "terima": ("trima", "trims"),
    "kasih": ("kasi", "ksh"),
    "pelayanan": ("plynan", "pelayanannya"),
    "makanan": ("makanannya", "mknan"),
    "barang": ("brg", "barangnya"),
    "belum": ("blm", "belom"),
    "apakah": ("apa", "apkah"),
    "bagaimana": ("gimana", "gmn"),
    "benar-benar": ("bener-bener", "bnr2"),
    "sampai": ("sampe", "smpe"),
    "pakai": ("pake", "pke"),
    "lagi": ("lg", "lgi"),
}
