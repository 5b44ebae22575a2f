// A module as users of pybind11 write it: classes with virtual methods, an enumeration, operators, callbacks, buffers,
// translated exceptions, and a call that crashes.
#include <pybind11/functional.h>
#include <pybind11/operators.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

class Animal {
public:
    explicit Animal(std::string name) : name(std::move(name)) {}
    virtual ~Animal() = default;
    virtual std::string sound(int times) { return name + " is silent " + std::to_string(times); }
    std::string name;
};

class Dog : public Animal {
public:
    using Animal::Animal;
    std::string sound(int times) override
    {
        std::string all;
        for (int i = 0; i < times; i++) {
            all += "woof ";
        }
        return all;
    }
};

class AnimalTrampoline : public Animal {
public:
    using Animal::Animal;
    std::string sound(int times) override { PYBIND11_OVERRIDE(std::string, Animal, sound, times); }
};

enum class Colour { red = 1, green = 2 };

struct Vec {
    double x, y;
    Vec operator+(const Vec &o) const { return {x + o.x, y + o.y}; }
    Vec operator*(double k) const { return {x * k, y * k}; }
    bool operator==(const Vec &o) const { return x == o.x && y == o.y; }
};
static Vec operator*(double k, const Vec &v) { return v * k; }

struct Grid {
    Grid(size_t rows, size_t columns) : rows(rows), columns(columns), data(rows * columns) {}
    size_t rows, columns;
    std::vector<double> data;
};

struct TooWild : std::runtime_error {
    using std::runtime_error::runtime_error;
};

PYBIND11_MODULE(bound_zoo, m)
{
    m.doc() = "a module made with pybind11";
    py::class_<Animal, AnimalTrampoline, std::shared_ptr<Animal>>(m, "Animal", "An animal.")
        .def(py::init<std::string>(), py::arg("name"))
        .def("sound", &Animal::sound, py::arg("times") = 1, "What it says.")
        .def_readwrite("name", &Animal::name)
        .def_property_readonly("length", [](const Animal &a) { return a.name.size(); })
        .def_static("make", [](const std::string &name) { return std::make_shared<Animal>(name); })
        .def("__repr__", [](const Animal &a) { return "<Animal " + a.name + ">"; });
    py::class_<Dog, Animal, std::shared_ptr<Dog>>(m, "Dog").def(py::init<std::string>());
    m.def("hear", [](Animal &a) { return "heard: " + a.sound(2); });
    m.def("same", [](std::shared_ptr<Animal> a) { return a; });
    py::enum_<Colour>(m, "Colour").value("red", Colour::red).value("green", Colour::green).export_values();
    m.def("is_red", [](Colour c) { return c == Colour::red; });
    py::class_<Vec>(m, "Vec")
        .def(py::init<double, double>())
        .def_readwrite("x", &Vec::x)
        .def_readwrite("y", &Vec::y)
        .def(py::self + py::self)
        .def(py::self * double())
        .def(double() * py::self)
        .def(py::self == py::self)
        .def("__hash__", [](const Vec &v) { return static_cast<int>(v.x * 31 + v.y); })
        .def(py::pickle([](const Vec &v) { return py::make_tuple(v.x, v.y); },
                        [](const py::tuple &t) { return Vec{t[0].cast<double>(), t[1].cast<double>()}; }));
    py::class_<Grid>(m, "Grid", py::buffer_protocol())
        .def(py::init<size_t, size_t>())
        .def_buffer([](Grid &g) {
            return py::buffer_info(g.data.data(), sizeof(double), py::format_descriptor<double>::format(), 2,
                                   {g.rows, g.columns}, {sizeof(double) * g.columns, sizeof(double)});
        })
        .def("__getitem__", [](const Grid &g, std::pair<size_t, size_t> at) {
            if (at.first >= g.rows || at.second >= g.columns) {
                throw py::index_error("outside");
            }
            return g.data[at.first * g.columns + at.second];
        });
    m.def("sum_of", [](const py::buffer &b) {
        py::buffer_info info = b.request();
        double sum = 0;
        for (ssize_t i = 0; i < info.size; i++) {
            sum += static_cast<double *>(info.ptr)[i];
        }
        return sum;
    });
    m.def("apply", [](const std::function<int(int)> &f, const std::vector<int> &values) {
        std::vector<int> results;
        for (int v : values) {
            results.push_back(f(v));
        }
        return results;
    });
    m.def("word_count", [](const std::vector<std::string> &words) {
        std::map<std::string, int> counts;
        for (const auto &word : words) {
            counts[word]++;
        }
        return counts;
    });
    m.def("fill", [](py::list list) { list.append(42); });
    py::register_exception<TooWild>(m, "TooWild", PyExc_ValueError);
    m.def("fail", [](int kind) {
        switch (kind) {
        case 0: throw TooWild("too wild");
        case 1: throw std::out_of_range("out of range");
        case 2: throw std::runtime_error("runtime");
        default: throw py::key_error("key");
        }
    });
    m.def("crash", []() {
        volatile int *volatile nowhere = nullptr;
        *nowhere = 1;
    });
}
