// A checkpoint in the safetensors format: an 8-byte header size, a JSON header naming each tensor's dtype,
// shape and place, then the tensors. Little-endian, as the host must be.
#ifndef MOE_ENGINE_SAFETENSORS_H
#define MOE_ENGINE_SAFETENSORS_H

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

/// Reads only the header; each tensor is read from the file on request. May be shared by threads.
///
/// Every call throws std::runtime_error with file and tensor for a bad file.
class safetensors {
  public:
    explicit safetensors(std::string path);

    std::vector<std::string> names() const;
    std::vector<size_t> shape(const std::string &name) const { return find(name).shape; }

    /// A tensor of dtype BF16 or F32 and of this shape.
    std::vector<float> f32(const std::string &name, const std::vector<size_t> &shape) const;
    /// Only the part at `index` of the tensor's first dimension.
    std::vector<float> f32_slice(const std::string &name, const std::vector<size_t> &shape,
                                 size_t index) const;
    /// A tensor of dtype I32 and of this shape.
    std::vector<int32_t> i32(const std::string &name, const std::vector<size_t> &shape) const;

  private:
    struct tensor {
        std::string dtype;
        std::vector<size_t> shape;
        size_t begin, end; // bytes of the file
    };

    const tensor &find(const std::string &name) const;
    const tensor &find(const std::string &name, const std::string &dtype,
                       const std::vector<size_t> &shape) const;
    std::vector<float> f32_range(const std::string &name, const std::vector<size_t> &shape, size_t first,
                                 size_t count) const;
    template <class T> std::vector<T> read(size_t begin, size_t count) const;
    [[noreturn]] void fail(const std::string &what) const;

    std::string path_;
    std::map<std::string, tensor> tensors_;
};

#endif
